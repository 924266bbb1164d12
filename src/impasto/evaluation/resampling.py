"""Bootstrap over prompts: how sure a number is, and whether two models differ beyond noise.

Several images of one prompt are alike, so prompts are drawn anew and not images; all models have
the same prompts and seeds and get the same draws, so their difference is measured in pairs (Efron
and Tibshirani 1993, "An Introduction to the Bootstrap", chapters 8 and 13). Draws are weights: how
often each prompt was drawn. A statistic is a function of weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

LEVEL = 0.95
_TAIL = (1 - LEVEL) / 2
_NORMAL = 1.959963984540054  # quantile of the standard normal distribution at 1 - _TAIL
FEW = 20
"""Below so many prompts an interval is too narrow: what was drawn says little of what was not."""

Spread = Literal["percentile", "normal"]


@dataclass(frozen=True)
class Estimate:
    """A statistic with what it came to in each draw of the bootstrap.

    Attributes:
        value: Of the prompts as they are.
        replicates: [R] the same of each draw; empty where it has no meaning.
        spread: How an interval is made of the draws. `normal` is for statistics that draws shift,
            such as the Fréchet distance: what is drawn twice lowers the rank of a covariance.
    """

    value: float
    replicates: np.ndarray
    spread: Spread = "percentile"

    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval; None where it cannot be told."""
        return interval_of(self.value, self.replicates, self.spread)

    def less(self, other: Estimate) -> Estimate:
        """This less another that had the same draws."""
        length = min(len(self.replicates), len(other.replicates))
        return Estimate(
            self.value - other.value,
            self.replicates[:length] - other.replicates[:length],
            self.spread,
        )


def interval_of(value: float, replicates: np.ndarray, spread: Spread) -> tuple[float, float] | None:
    """The 95 % interval of a statistic by its draws; those without a number are left out.

    Args:
        value: The statistic.
        replicates: [R] of each draw.
        spread: By the draws' own percentiles, or by their standard deviation around the value.
    """
    known = replicates[np.isfinite(replicates)]
    if len(known) < 2:
        return None
    if spread == "normal":
        half = _NORMAL * float(known.std(ddof=1))
        return value - half, value + half
    low, high = np.quantile(known, [_TAIL, 1 - _TAIL])
    return float(low), float(high)


def draw_weights(count: int, replicates: int, seed: int) -> np.ndarray:
    """[R, count] how often each of so many things was drawn, in draws of `count` with putting back.

    Args:
        count: How many things there are.
        replicates: R, the number of draws.
        seed: Of the draws: the same seed and numbers give the same weights.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    chances = np.full(count, 1 / count)
    found = np.empty((replicates, count), np.float32)
    for row in found:
        row[:] = generator.multinomial(count, chances)
    return found


def mean_estimate(
    values: Sequence[float | None], groups: np.ndarray, draws: np.ndarray
) -> Estimate:
    """The mean over images.

    Args:
        values: Of each image; None where an image has none.
        groups: [N] the prompt of each image.
        draws: [R, P] how often each prompt was drawn.
    """
    known = np.array([value is not None for value in values], np.bool_)
    numbers = np.array([0.0 if value is None else value for value in values])
    sums = np.bincount(groups, weights=numbers, minlength=draws.shape[1])
    counts = np.bincount(groups, weights=known.astype(np.float64), minlength=draws.shape[1])
    if not counts.sum():
        return Estimate(float("nan"), np.empty(0))
    with np.errstate(invalid="ignore"):
        replicates = (draws @ sums) / (draws @ counts)
    if (counts > 0).sum() < 2:
        replicates = np.empty(0)
    return Estimate(float(sums.sum() / counts.sum()), replicates)
