"""The number of shards of each part of a model, for predictions of memory."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sharding:
    """The number of processes that each part of a memory footprint is sharded over.

    Attributes:
        weights: Shards of the trained weights and their running average.
        gradients: Shards of the gradients, once they are complete.
        optimizer: Shards of the optimizer's state.
        has_master_weights: Whether the optimizer updates a float32 copy of the weights.
    """

    weights: int = 1
    gradients: int = 1
    optimizer: int = 1
    has_master_weights: bool = False


WHOLE = Sharding()
"""No sharding: each process holds the whole model."""
