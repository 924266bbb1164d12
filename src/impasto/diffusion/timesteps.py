"""From uniform random numbers to timesteps: which noise levels a run trains on."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from impasto.diffusion.draws import Draws


@runtime_checkable
class TimestepSampler(Protocol):
    """Draws one timestep for each sample of a batch."""

    def __call__(self, draws: Draws, num_timesteps: int) -> Int[Tensor, "b"]:
        """Integers in [0, num_timesteps), on the CPU."""


def uniform_timesteps(draws: Draws, num_timesteps: int) -> Int[Tensor, "b"]:
    """Every timestep with equal chance; Ho et al. 2020 (arXiv:2006.11239), algorithm 1."""
    return (draws.uniform("timestep") * num_timesteps).long()


def fixed_timesteps(count: int, num_timesteps: int) -> Int[Tensor, "count"]:
    """The midpoints of `count` equal parts of [0, num_timesteps): for validation."""
    return ((torch.arange(count) + 0.5) * num_timesteps / count).long()
