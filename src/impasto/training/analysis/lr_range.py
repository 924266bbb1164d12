"""The learning-rate range test as numbers: which rates are tried, and which one is suggested.

Smith 2017, "Cyclical Learning Rates for Training Neural Networks" (arXiv:1506.01186), section 3.3:
train for a moment while the rate rises, and see where the loss falls and where it breaks. The rise
by a constant factor, and the suggestion of a tenth of the rate with the least loss, are those of
fastai's `lr_find` (`SuggestionMethod` "minimum"). Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from impasto.errors import ConfigError

WINDOW = 5
"""Points that a smoothed loss is the mean of: that point's and two on each side.

The mean is centred: a running mean would lag, and show the least loss at too high a rate."""

MARGIN = 10
"""The suggested rate is that of the least loss divided by this, as in fastai."""

DIVERGED = 2.0
"""A loss of so many times the first has diverged, and ends the test."""

LEAST_FALL = 1e-3
"""A fall of the loss by a smaller share of it is not called one."""


@dataclass(frozen=True)
class LrRange:
    """Rates that rise by the same factor from step to step.

    Attributes:
        low: The first.
        high: The last.
        steps: How many there are, at least 10.

    Raises:
        ConfigError: The first is not below the last.
    """

    low: float
    high: float
    steps: int

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high:
            raise ConfigError(
                f"The rates go from {self.low:g} to {self.high:g}: --from has to be above 0 and "
                f"below --to."
            )

    def rate_at(self, step: int) -> float:
        """The rate of a step, counted from 0: low (high / low)^(step / (steps - 1))."""
        return float(self.low * (self.high / self.low) ** (step / (self.steps - 1)))


@dataclass(frozen=True)
class LrCurve:
    """What a range test measured.

    Attributes:
        first: The loss before any step.
        rates: The rate of each step that was done.
        losses: The loss after it, finite or not: the last one may have diverged.
    """

    first: float
    rates: Sequence[float]
    losses: Sequence[float]

    @property
    def has_diverged(self) -> bool:
        """Whether the test ended because the loss did."""
        return bool(self.losses) and is_diverged(self.first, self.losses[-1])

    @property
    def known(self) -> int:
        """How many losses are of use: all but one that diverged."""
        return len(self.losses) - (1 if self.has_diverged else 0)

    @cached_property
    def smoothed(self) -> Sequence[float]:
        """The mean of each loss and its neighbours on both sides, as far as there are any.

        At the ends the neighbours are as many on each side as the nearer end has, so that a slope
        does not bend there.
        """
        found = []
        for index in range(self.known):
            reach = min(WINDOW // 2, index, self.known - 1 - index)
            near = self.losses[index - reach : index + reach + 1]
            found.append(math.fsum(near) / len(near))
        return found

    @property
    def least(self) -> int | None:
        """Where the smoothed loss is least, as an index; None where no loss is of use."""
        smoothed = self.smoothed
        return min(range(len(smoothed)), key=smoothed.__getitem__) if smoothed else None

    @property
    def steepest(self) -> float | None:
        """The rate at which the smoothed loss falls most per factor of the rate, up to the least.

        None where it does not fall.
        """
        falls = [self.smoothed[i + 1] - self.smoothed[i] for i in range(self.least or 0)]
        if not falls or min(falls) >= 0:
            return None
        at = falls.index(min(falls))
        return math.sqrt(self.rates[at] * self.rates[at + 1])


@dataclass(frozen=True)
class Suggestion:
    """What a range test comes to.

    Attributes:
        lr: The suggested rate; None where the curve does not say.
        reason: Why, in sentences.
    """

    lr: float | None
    reason: str


def is_diverged(first: float, loss: float) -> bool:
    """Whether a loss is so far above the first that a test ends."""
    return not math.isfinite(loss) or loss > DIVERGED * first


def suggest(curve: LrCurve) -> Suggestion:
    """The rate to begin with, or what to change for an answer."""
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
            f"No rate lowered the loss by {LEAST_FALL:.1%}; it {where} from {curve.first:.4f} on. "
            f"Try other rates (--from, --to) or more --steps; or this model knows these images "
            f"already.",
        )
    if at == curve.known - 1 and not curve.has_diverged:
        return Suggestion(
            None,
            f"The loss still fell at the highest rate, {rate:.2g}, by {fall:.1%} in all: the test "
            f"has not seen where it breaks. Try a higher --to.",
        )
    steep = curve.steepest
    return Suggestion(
        _two_digits(rate / MARGIN),
        f"The loss is least at {rate:.2g} ({fall:.1%} below the first) and rises beyond. A "
        f"{'tenth' if MARGIN == 10 else f'1/{MARGIN}'} of that leaves room for a whole run"
        + (f"; it falls most steeply at {steep:.2g}." if steep else "."),
    )


def _two_digits(rate: float) -> float:
    return float(f"{rate:.1e}")
