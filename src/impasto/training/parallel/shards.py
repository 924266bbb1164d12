"""By how many processes a model is divided, as predictions of memory need it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sharding:
    """By how many processes each part of a footprint is divided.

    Attributes:
        weights: Those that learn, and their average.
        gradients: Once they are complete.
        optimizer: Its state.
        has_master_weights: Whether what is stepped is a copy of the weights.
    """

    weights: int = 1
    gradients: int = 1
    optimizer: int = 1
    has_master_weights: bool = False


WHOLE = Sharding()
"""Of a process that has all of the model."""
