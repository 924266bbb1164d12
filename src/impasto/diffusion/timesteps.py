"""Turns uniform random numbers into timesteps: the noise levels that a run trains on."""

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
        """Return integers in [0, num_timesteps), on the CPU."""


@dataclass(frozen=True)
class TimestepRange:
    """The timesteps [first, last) that a run trains on; the whole schedule by default."""

    first: int = 0
    last: int | None = None

    def spread(self, fractions: Float[Tensor, "b"], num_timesteps: int) -> Int[Tensor, "b"]:
        """Map numbers in [0, 1) to timesteps of the range."""
        last = num_timesteps if self.last is None else min(self.last, num_timesteps)
        return self.first + (fractions * (last - self.first)).long()


@dataclass(frozen=True)
class Uniform:
    """Draws each timestep with equal probability; Ho et al. 2020 (arXiv:2006.11239), alg. 1."""

    within: TimestepRange = TimestepRange()

    def __call__(self, randomness: PerSampleRandomness, num_timesteps: int) -> Int[Tensor, "b"]:
        """Return one timestep per sample, on the CPU."""
        return self.within.spread(randomness.uniform("timestep"), num_timesteps)


ALL_TIMESTEPS = Uniform()


@dataclass(frozen=True)
class Stratified:
    """Splits the range into as many equal parts as the step has samples, one timestep from each.

    The loss then varies less from step to step; Kingma et al. 2021 (arXiv:2107.00630), appendix
    I.1, draw them so, with one random shift for all.
    """

    within: TimestepRange = TimestepRange()

    def __call__(self, randomness: PerSampleRandomness, num_timesteps: int) -> Int[Tensor, "b"]:
        """Return one timestep per sample, on the CPU."""
        fractions = (randomness.ranks + randomness.uniform("timestep")) / randomness.samples_in_step
        return self.within.spread(fractions, num_timesteps)


@dataclass(frozen=True)
class LogitNormal:
    """Draws timesteps whose logit is normal, most of them in the middle; Esser et al. 2024.

    arXiv:2403.03206, section 3.1.

    Attributes:
        mean: Mean of the logit; above 0 favours more noise.
        std: Standard deviation of the logit; a larger one spreads timesteps more widely.
        within: Range of the timesteps.
    """

    mean: float = 0.0
    std: float = 1.0
    within: TimestepRange = TimestepRange()

    def __call__(self, randomness: PerSampleRandomness, num_timesteps: int) -> Int[Tensor, "b"]:
        """Return one timestep per sample, on the CPU."""
        logits = self.mean + self.std * randomness.normal((), "timestep").double()
        fractions = torch.sigmoid(logits).clamp(max=1 - 1e-9)
        return self.within.spread(fractions, num_timesteps)


def fixed_timesteps(count: int, num_timesteps: int) -> Int[Tensor, "count"]:
    """Return the midpoints of `count` equal parts of [0, num_timesteps), for validation."""
    return ((torch.arange(count) + 0.5) * num_timesteps / count).long()
