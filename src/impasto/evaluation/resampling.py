"""Bootstrap over prompts: intervals of measures, and whether two models differ beyond noise.

Images of one prompt are alike, so prompts are resampled and not images. All models have the same
prompts and seeds and get the same draws, so their differences are paired (Efron and Tibshirani
1993, "An Introduction to the Bootstrap", chapters 8 and 13). A draw is a vector of weights: how
often each prompt was drawn. A statistic is a function of weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Literal

import numpy as np

LEVEL = 0.95
_TAIL = (1 - LEVEL) / 2
FEW = 20
"""With fewer prompts, an interval is rough, since they represent other prompts poorly."""

FEWEST = 10
"""With fewer prompts or real images, no verdict is given, since too many would be wrong."""

Spread = Literal["percentile", "normal"]


@dataclass(frozen=True)
class Estimate:
    """A statistic with its values in the bootstrap draws.

    Attributes:
        value: The statistic of the original prompts.
        replicates: [R] the statistic of each draw; empty if it is undefined.
        spread: The method for the interval. `normal` is for statistics that resampling shifts, such
            as the Fréchet distance: repeated rows lower the rank of a covariance.
        drawn_from: Number of independent units: prompts, or real images if these are fewer; None
            if it is so large that it does not matter.
        is_dependent: Whether the samples depend on the real images, so that a model improves merely
            by following captions; differences then have no verdict.
    """

    value: float
    replicates: np.ndarray
    spread: Spread = "percentile"
    drawn_from: int | None = None
    is_dependent: bool = False

    def interval(self) -> tuple[float, float] | None:
        """Return the 95 % interval, or None if it is undefined."""
        return interval_of(self.value, self.replicates, self.spread, self.drawn_from)

    def less(self, other: Estimate) -> Estimate:
        """Return the difference from another estimate that was resampled with the same draws."""
        length = min(len(self.replicates), len(other.replicates))
        return Estimate(
            self.value - other.value,
            self.replicates[:length] - other.replicates[:length],
            self.spread,
            min((n for n in (self.drawn_from, other.drawn_from) if n is not None), default=None),
            self.is_dependent or other.is_dependent,
        )


def interval_of(
    value: float, replicates: np.ndarray, spread: Spread, drawn_from: int | None = None
) -> tuple[float, float] | None:
    """Return the 95 % interval of a statistic from its draws, or None if it is undefined.

    Draws that are not finite are left out. With few prompts, percentile intervals are too narrow:
    the variance of a draw of n is smaller by the factor (n - 1)/n, and its tails are those of a
    normal distribution and not of Student's. So wider percentiles are taken: Hesterberg's expanded
    percentile interval ("What Teachers Should Know about the Bootstrap", arXiv:1411.5279).

    Args:
        value: The statistic.
        replicates: [R] the statistic of each draw.
        spread: `percentile` takes percentiles of the draws, `normal` their standard deviation
            around the value.
        drawn_from: As in `Estimate`.
    """
    known = replicates[np.isfinite(replicates)]
    if len(known) < 2 or (drawn_from is not None and drawn_from < 2):
        return None
    if spread == "normal":
        half = student_quantile(len(known) - 1) * float(known.std(ddof=1))
        return value - half, value + half
    tail = _TAIL if drawn_from is None else _expanded_tail(drawn_from)
    low, high = np.quantile(known, [tail, 1 - tail])
    return float(low), float(high)


@cache
def _expanded_tail(count: int) -> float:
    """Return the fraction of draws beyond each end of the interval, for `count` units."""
    farther = math.sqrt(count / (count - 1)) * student_quantile(count - 1)
    return NormalDist().cdf(-farther)


@cache
def student_quantile(freedom: int) -> float:
    """Return t such that 95 % of Student's distribution with this freedom is between -t and t."""
    low, high = 1.0, 13.0
    for _ in range(50):
        middle = (low + high) / 2
        is_low = _central_probability(middle, freedom) < LEVEL
        low, high = (middle, high) if is_low else (low, middle)
    return high


def _central_probability(t: float, freedom: int) -> float:
    """Return the probability of Student's t distribution between -t and t.

    Abramowitz and Stegun, "Handbook of Mathematical Functions", 26.7.3 and 26.7.4.
    """
    angle = math.atan2(t, math.sqrt(freedom))
    cosine, is_odd = math.cos(angle), freedom % 2
    term = cosine if is_odd else 1.0
    total = 0.0 if freedom == 1 else term
    for k in range(2 + is_odd, freedom - 1, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    fraction = math.sin(angle) * total
    return (angle + fraction) * 2 / math.pi if is_odd else fraction


def draw_weights(count: int, replicates: int, seed: int) -> np.ndarray:
    """Return [R, count] how often each unit was drawn, in draws of `count` with replacement.

    Args:
        count: Number of units.
        replicates: R, the number of draws.
        seed: Seed of the draws; equal arguments give equal weights.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    chances = np.full(count, 1 / count)
    found = np.empty((replicates, count), np.float32)
    for row in found:
        row[:] = generator.multinomial(count, chances)
    return found


def draw_real(count: int, linked: Sequence[int | None], draws: np.ndarray, seed: int) -> np.ndarray:
    """Return [R, count] how often each real image was drawn.

    A real image and the prompt that is its caption are one unit, since samples of the prompt depend
    on both, so they are drawn together; the other real images are drawn separately.

    Args:
        count: Number of real images.
        linked: [P] the index of the image whose caption is the prompt, or None.
        draws: [R, P] how often each prompt was drawn.
        seed: Seed of the draws of the other images.
    """
    prompts = {index: prompt for prompt, index in enumerate(linked) if index is not None}
    others = [index for index in range(count) if index not in prompts]
    found = np.empty((len(draws), count), np.float32)
    found[:, list(prompts)] = draws[:, list(prompts.values())]
    if others:
        found[:, others] = draw_weights(len(others), len(draws), seed)
    return found


def mean_estimate(
    values: Sequence[float | None], groups: np.ndarray, draws: np.ndarray
) -> Estimate:
    """Estimate the mean over images; its value is NaN if no image has one.

    Args:
        values: The value of each image, or None.
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
    prompts = int((counts > 0).sum())
    return Estimate(float(sums.sum() / counts.sum()), replicates, drawn_from=prompts)
