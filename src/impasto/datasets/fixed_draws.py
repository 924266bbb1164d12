"""Chooses how many draws of noise and timestep validation uses per image. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from impasto.config.run import RunConfig

NOISE_SPREAD, LEVEL_SPREAD = 0.1, 1.5
"""Spread of the loss between draws, as fractions of its mean: the standard deviation over noise at
one noise level; and over the noise levels of one stratum, times the number of strata. For the
demo's base model they are 0.06 and 0.8; full-size models differ more from level to level."""

_MOST = 1000  # draws of one image: there are no more timesteps


@dataclass(frozen=True)
class NoiseDraws:
    """The (noise, timestep) pairs that each image is evaluated with.

    Attributes:
        per_image: Number of pairs per image.
        are_spread: Whether different images have different timesteps, so that together they cover
            the schedule; otherwise all images have the same.
    """

    per_image: int
    are_spread: bool

    @property
    def purpose(self) -> str:
        """Name from which the noise seed is derived: differs when the timesteps do."""
        return "validation draw" if self.are_spread else "validation"

    def standard_error(self, images: int) -> float:
        """Estimate the standard error of the mean loss over some images, as a fraction of it.

        Timesteps are stratified: an image's draws lie in as many equal parts of the schedule, one
        per part, so the loss varies only within a part, and less the more parts there are. The
        positions of images within the parts are taken as independent, and so is their noise; if all
        images have the same timesteps, more images do not reduce the error from these.
        """
        number = max(1, images)
        strata = number if self.are_spread else 1
        noise = NOISE_SPREAD / math.sqrt(number)
        levels = LEVEL_SPREAD / self.per_image / math.sqrt(strata)
        return math.hypot(noise, levels) / math.sqrt(self.per_image)


def plan_draws(images: int, least: int, standard_error: float) -> NoiseDraws:
    """Return the fewest draws per image whose standard error of the mean loss is small enough.

    Args:
        images: How many images are evaluated.
        least: The fewest draws per image.
        standard_error: Largest error allowed, as a fraction of the loss; 0 gives `least` draws, at
            the same timesteps for all images.
    """
    if standard_error == 0:
        return NoiseDraws(least, are_spread=False)
    numbers = (NoiseDraws(number, are_spread=True) for number in range(min(least, _MOST), _MOST))
    enough = (draws for draws in numbers if draws.standard_error(images) <= standard_error)
    return next(enough, NoiseDraws(_MOST, are_spread=True))


def planned_draws(config: RunConfig, images: int) -> NoiseDraws:
    """Return the validation draws of a run that holds out `images` images."""
    validation = config.validation
    return plan_draws(images, validation.timesteps, validation.standard_error)
