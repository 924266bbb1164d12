"""How many draws of noise and timestep images are validated at. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from impasto.config.run import RunConfig

NOISE_SPREAD, LEVEL_SPREAD = 0.1, 1.5
"""What varies between draws, as shares of the mean loss: the standard deviation over noise at one
noise level, and over the noise levels of one stratum, times the number of strata. Of the demo's
base model they are 0.06 and 0.8; full-size models differ more from level to level."""

_MOST = 1000  # draws of one image: more timesteps there are not


@dataclass(frozen=True)
class NoiseDraws:
    """The (noise, timestep) pairs of each image.

    Attributes:
        per_image: How many.
        are_spread: Whether the timesteps of different images differ, so that they cover the
            schedule together; otherwise all have the same.
    """

    per_image: int
    are_spread: bool

    @property
    def purpose(self) -> str:
        """What the noise is drawn for: other noise where the timesteps are others."""
        return "validation draw" if self.are_spread else "validation"

    def standard_error(self, images: int) -> float:
        """What the draws of so many images leave in the mean loss, about, as a share of it.

        Timesteps are stratified: of an image's draws one is in each of as many equal parts of the
        schedule, so the loss varies within a part alone, by as much less as there are more of them.
        The positions of images within the parts are taken as independent, and so is their noise;
        where all have the same timesteps, more images make what these leave no smaller.
        """
        number = max(1, images)
        strata = number if self.are_spread else 1
        noise = NOISE_SPREAD / math.sqrt(number)
        levels = LEVEL_SPREAD / self.per_image / math.sqrt(strata)
        return math.hypot(noise, levels) / math.sqrt(self.per_image)


def plan_draws(images: int, least: int, standard_error: float) -> NoiseDraws:
    """The fewest draws that leave no more than a standard error in the mean loss of some images.

    Args:
        images: How many are measured.
        least: Draws of each at least.
        standard_error: As a share of the loss; 0 for `least` draws at the same timesteps for all.
    """
    if standard_error == 0:
        return NoiseDraws(least, are_spread=False)
    numbers = (NoiseDraws(number, are_spread=True) for number in range(min(least, _MOST), _MOST))
    enough = (draws for draws in numbers if draws.standard_error(images) <= standard_error)
    return next(enough, NoiseDraws(_MOST, are_spread=True))


def planned_draws(config: RunConfig, images: int) -> NoiseDraws:
    """The draws of a run that holds so many images out."""
    validation = config.validation
    return plan_draws(images, validation.timesteps, validation.standard_error)
