"""How sure a comparison of validation losses is: paired differences over held-out images.

Two models are measured on the same images with the same noise and timesteps. Draws of one image
are no independent evidence: they share what is hard about it, and a model that does better on it
does so in most of them. So images are the units, the mean over an image's draws is its value, and
Student's paired t-test over these values says what other images of the same kind would.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
"""How sure all that is claimed of a run is together: of 100 runs, at most about 5 are told
something of their validation that other images would not bear out, where differences between
images are about gaussian. Of skewed ones it is more: lognormal ones, the same at all steps, make it
10 with two validations after the base model's, and 6 with ten; anew at each step, 17 and 32."""


@dataclass(frozen=True)
class Difference:
    """By how much one model's loss is above another's, over the same images.

    Attributes:
        mean: The mean difference; below 0 where the first is better.
        standard_error: Of the mean, over images.
        images: Independent values that it was found from, at least 2.
    """

    mean: float
    standard_error: float
    images: int

    def is_above(self, chance: float) -> bool:
        """Whether the difference is above 0, but for at most this chance of error."""
        return self.mean > 0 and self._tail() <= chance

    def is_below(self, chance: float) -> bool:
        """Whether the difference is below 0, but for at most this chance of error."""
        return self.mean < 0 and self._tail() <= chance

    def _tail(self) -> float:
        """The chance of a mean so far to one side where there is no difference."""
        if self.standard_error == 0:
            return 0.0
        return t_tail(abs(self.mean) / self.standard_error, self.images - 1)


def difference(one: Sequence[float], other: Sequence[float]) -> Difference | None:
    """The paired difference `one` - `other`; None where they are not of the same two or more."""
    if len(one) != len(other) or len(one) < 2:
        return None
    values = [a - b for a, b in zip(one, other, strict=True)]
    error = standard_error(values)
    return None if error is None else Difference(math.fsum(values) / len(values), error, len(one))


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean of independent values; None of fewer than two, which say nothing of it."""
    number = len(values)
    if number < 2:
        return None
    mean = math.fsum(values) / number
    squares = math.fsum((value - mean) ** 2 for value in values)
    return math.sqrt(squares / (number - 1) / number)


def t_tail(t: float, degrees: int) -> float:
    """The chance that Student's t is above `t`, for a whole number of degrees of freedom.

    By the finite series of Abramowitz and Stegun 1964, 26.7.3 and 26.7.4.

    Args:
        t: 0 or more.
        degrees: Degrees of freedom, 1 or more.
    """
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    is_odd = degrees % 2 == 1
    term = cosine if is_odd else 1.0
    total = 0.0
    for n in range(2 + is_odd, degrees + 1, 2):
        total += term
        term *= cosine * cosine * (n - 1) / n
    within = 2 / math.pi * (angle + sine * total) if is_odd else sine * total
    return max(0.0, (1 - within) / 2)


def chance_of_each(comparisons: int) -> float:
    """The chance of error that each of some comparisons may have for all to be `CONFIDENCE` sure.

    Bonferroni's: it holds however the comparisons hang together, as those of one run do.
    """
    return (1 - CONFIDENCE) / max(1, comparisons)
