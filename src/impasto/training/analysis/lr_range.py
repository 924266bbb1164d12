"""The arithmetic of the learning-rate range test: the rates to try, and the rate to suggest.

Smith 2017, "Cyclical Learning Rates for Training Neural Networks" (arXiv:1506.01186), section 3.3:
train briefly while the rate rises, and find where the loss falls and where it diverges. The rise by
a constant factor, and the suggestion of a tenth of the rate with the lowest loss, are those of
fastai's `lr_find` (`SuggestionMethod` "minimum"). Does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from impasto.errors import ConfigError
from impasto.progress import percent

WINDOW = 5
"""Number of points that a smoothed loss averages: the point and two on each side.

The mean is centred: a running mean would lag, and show the lowest loss at too high a rate."""

MARGIN = 10
"""The suggested rate is the rate with the lowest loss divided by this, as in fastai."""

DIVERGED = 2.0
"""A loss above this multiple of the first one counts as diverged, and ends the test."""

LEAST_FALL = 1e-3
"""A fall of the loss by a smaller fraction of it counts as none."""


@dataclass(frozen=True)
class LrRange:
    """Learning rates that rise by a constant factor per step.

    Attributes:
        low: The first rate.
        high: The last rate.
        steps: Number of rates, at least 2.

    Raises:
        ConfigError: The first rate is not above 0 and below the last, or there is only one.
    """

    low: float
    high: float
    steps: int

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high:
            raise ConfigError(
                f"The rates go from {self.low:g} to {self.high:g}; --from must be above 0 and "
                f"below --to."
            )
        if self.steps < 2:
            raise ConfigError(f"A range test takes at least 2 steps, not {self.steps}.")

    def rate_at(self, step: int) -> float:
        """Return the rate of a step, counted from 0: low (high / low)^(step / (steps - 1))."""
        return float(self.low * (self.high / self.low) ** (step / (self.steps - 1)))


@dataclass(frozen=True)
class LrCurve:
    """The losses that a range test measured.

    Attributes:
        first: The loss before any step.
        rates: The learning rate of each completed step.
        losses: The loss after each of these steps; the last one may have diverged or be NaN.
    """

    first: float
    rates: Sequence[float]
    losses: Sequence[float]

    @property
    def has_diverged(self) -> bool:
        """Whether the test ended because the loss diverged."""
        return bool(self.losses) and is_diverged(self.first, self.losses[-1])

    @property
    def known(self) -> int:
        """Number of usable losses: all but a diverged last one."""
        return len(self.losses) - (1 if self.has_diverged else 0)

    @cached_property
    def smoothed(self) -> Sequence[float]:
        """The usable losses, each averaged with up to two neighbours on both sides.

        Near the ends fewer neighbours are used, equally many on each side, so that a slope does not
        bend there.
        """
        found = []
        for index in range(self.known):
            reach = min(WINDOW // 2, index, self.known - 1 - index)
            near = self.losses[index - reach : index + reach + 1]
            found.append(math.fsum(near) / len(near))
        return found

    @property
    def least(self) -> int | None:
        """The index of the lowest smoothed loss; None if there is no usable loss."""
        smoothed = self.smoothed
        return min(range(len(smoothed)), key=smoothed.__getitem__) if smoothed else None

    @property
    def steepest(self) -> float | None:
        """The rate at which the smoothed loss falls most steeply over the logarithm of the rate.

        Only rates up to that of the lowest loss count. None if the loss does not fall.
        """
        falls = [self.smoothed[i + 1] - self.smoothed[i] for i in range(self.least or 0)]
        if not falls or min(falls) >= 0:
            return None
        at = falls.index(min(falls))
        return math.sqrt(self.rates[at] * self.rates[at + 1])


@dataclass(frozen=True)
class Suggestion:
    """The result of a range test.

    Attributes:
        lr: The suggested learning rate; None if the curve does not determine one.
        reason: The reason, in sentences.
    """

    lr: float | None
    reason: str


def is_diverged(first: float, loss: float) -> bool:
    """Return whether a loss is not finite, or above `DIVERGED` times the first."""
    return not math.isfinite(loss) or loss > DIVERGED * first


def suggest(curve: LrCurve) -> Suggestion:
    """Return the suggested rate, or the changes of the test that would lead to one."""
    at = curve.least
    if at is None:
        return Suggestion(
            None, "The loss diverged in the first step. Try lower rates: a smaller --from."
        )
    least, rate = curve.smoothed[at], curve.rates[at]
    fall = (curve.first - least) / curve.first if curve.first > 0 else 0.0
    if fall < LEAST_FALL:
        where = "rose" if curve.has_diverged else "hardly changed"
        return Suggestion(
            None,
            f"No rate lowered the loss by {percent(LEAST_FALL)}; it {where} from "
            f"{curve.first:.4f}. Try other rates (--from, --to) or more --steps. The model may "
            f"also have learned these images already.",
        )
    if at == curve.known - 1 and not curve.has_diverged:
        return Suggestion(
            None,
            f"The loss was still falling at the highest rate, {rate:.2g}, by {percent(fall)} in "
            f"all: the test did not reach the rate at which it rises. Try a higher --to.",
        )
    steep = curve.steepest
    return Suggestion(
        _two_digits(rate / MARGIN),
        f"The loss is lowest at {rate:.2g} ({percent(fall)} below the first) and rises beyond. A "
        f"{'tenth' if MARGIN == 10 else f'1/{MARGIN}'} of that is safe for a whole run"
        + (f"; it falls most steeply at {steep:.2g}." if steep else "."),
    )


def _two_digits(rate: float) -> float:
    return float(f"{rate:.1e}")
