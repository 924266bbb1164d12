"""From uniform random numbers to timesteps: which noise levels a run trains on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from impasto.diffusion.randomness import PerSampleRandomness


@runtime_checkable
class TimestepSampler(Protocol):
    """Draws one timestep for each sample of a batch."""

    def __call__(self, randomness: PerSampleRandomness, num_timesteps: int) -> Int[Tensor, "b"]:
        """Integers in [0, num_timesteps), on the CPU."""


@dataclass(frozen=True)
class TimestepRange:
    """The timesteps [first, last) that a run trains on; the whole schedule by default."""

    first: int = 0
    last: int | None = None

    def spread(self, shares: Float[Tensor, "b"], num_timesteps: int) -> Int[Tensor, "b"]:
        """Numbers in [0, 1) -> timesteps of the range."""
        last = num_timesteps if self.last is None else min(self.last, num_timesteps)
        return self.first + (shares * (last - self.first)).long()


@dataclass(frozen=True)
class Uniform:
    """Every timestep with equal chance; Ho et al. 2020 (arXiv:2006.11239), algorithm 1."""

    within: TimestepRange = TimestepRange()

    def __call__(self, randomness: PerSampleRandomness, num_timesteps: int) -> Int[Tensor, "b"]:
        """Timesteps on the CPU."""
        return self.within.spread(randomness.uniform("timestep"), num_timesteps)


ALL_TIMESTEPS = Uniform()


@dataclass(frozen=True)
class Stratified:
    """As many equal parts of the range as the step has samples, one timestep from each.

    Less spread of the loss from step to step; Kingma et al. 2021 (arXiv:2107.00630), appendix
    I.1, draws them so, with one random shift for all.
    """

    within: TimestepRange = TimestepRange()

    def __call__(self, randomness: PerSampleRandomness, num_timesteps: int) -> Int[Tensor, "b"]:
        """Timesteps on the CPU."""
        shares = (randomness.ranks + randomness.uniform("timestep")) / randomness.samples_in_step
        return self.within.spread(shares, num_timesteps)


@dataclass(frozen=True)
class LogitNormal:
    """Timesteps whose logit is normal, most of them in the middle; Esser et al. 2024.

    arXiv:2403.03206, section 3.1.

    Attributes:
        mean: Above 0 is more noise.
        std: More is wider.
    """

    mean: float = 0.0
    std: float = 1.0
    within: TimestepRange = TimestepRange()

    def __call__(self, randomness: PerSampleRandomness, num_timesteps: int) -> Int[Tensor, "b"]:
        """Timesteps on the CPU."""
        logits = self.mean + self.std * randomness.normal((), "timestep").double()
        shares = torch.sigmoid(logits).clamp(max=1 - 1e-9)
        return self.within.spread(shares, num_timesteps)


def fixed_timesteps(count: int, num_timesteps: int) -> Int[Tensor, "count"]:
    """The midpoints of `count` equal parts of [0, num_timesteps): for validation."""
    return ((torch.arange(count) + 0.5) * num_timesteps / count).long()
