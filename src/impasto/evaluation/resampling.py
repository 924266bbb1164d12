"""Bootstrap over prompts: how sure a number is, and whether two models differ beyond noise.

Several images of one prompt are alike, so prompts are drawn anew and not images; all models have
the same prompts and seeds and get the same draws, so their difference is measured in pairs (Efron
and Tibshirani 1993, "An Introduction to the Bootstrap", chapters 8 and 13). Draws are weights: how
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
"""Below so many prompts an interval is rough: what was drawn says little of what was not."""

FEWEST = 10
"""Below so many prompts or real images no verdict is told: too many would be wrong."""

Spread = Literal["percentile", "normal"]


@dataclass(frozen=True)
class Estimate:
    """A statistic with what it came to in each draw of the bootstrap.

    Attributes:
        value: Of the prompts as they are.
        replicates: [R] the same of each draw; empty where it has no meaning.
        spread: How an interval is made of the draws. `normal` is for statistics that draws shift,
            such as the Fréchet distance: what is drawn twice lowers the rank of a covariance.
        drawn_from: How many independent things it is of: prompts, or real images if they are fewer;
            None means so many that their number does not matter.
        is_dependent: Whether what was drawn depends on what it is compared with, so that a model is
            better by following captions alone: differences are then told without a verdict.
    """

    value: float
    replicates: np.ndarray
    spread: Spread = "percentile"
    drawn_from: int | None = None
    is_dependent: bool = False

    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval; None where it cannot be told."""
        return interval_of(self.value, self.replicates, self.spread, self.drawn_from)

    def less(self, other: Estimate) -> Estimate:
        """The difference to another estimate that was resampled by the same draws."""
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
    """The 95 % interval of a statistic by its draws; those without a number are left out.

    Percentiles of few prompts lie too close together: a draw of n varies less than n things do, by
    the root of (n - 1)/n, and has the tails of a normal distribution instead of Student's. So they
    are taken farther out: Hesterberg's expanded percentile interval ("What Teachers Should Know
    about the Bootstrap", arXiv:1411.5279).

    Args:
        value: The statistic.
        replicates: [R] of each draw.
        spread: By the draws' own percentiles, or by their standard deviation around the value.
        drawn_from: As of an `Estimate`.
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
    """The fraction of draws of so many things that is beyond each end of an interval."""
    farther = math.sqrt(count / (count - 1)) * student_quantile(count - 1)
    return NormalDist().cdf(-farther)


@cache
def student_quantile(freedom: int) -> float:
    """How far from zero 95 % of Student's t distribution reach, with so many degrees of freedom."""
    low, high = 1.0, 13.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _central_share(middle, freedom) < LEVEL else (low, middle)
    return high


def _central_share(t: float, freedom: int) -> float:
    """The probability of Student's t between -t and t.

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


def draw_real(count: int, linked: Sequence[int | None], draws: np.ndarray, seed: int) -> np.ndarray:
    """[R, count] how often each real image was drawn.

    A real image and the prompt that is its caption are one thing, of which an image of that prompt
    depends, so they are drawn together; the others are drawn by themselves.

    Args:
        count: How many real images there are.
        linked: [P] the index of the image whose caption a prompt is, or None.
        draws: [R, P] how often each prompt was drawn.
        seed: Of the draws of the others.
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
    prompts = int((counts > 0).sum())
    return Estimate(float(sums.sum() / counts.sum()), replicates, drawn_from=prompts)
