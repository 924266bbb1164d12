"""The certainty of a comparison of validation losses: paired differences over held-out images.

Two models are measured on the same images with the same noise and timesteps. Several draws of one
image are not independent evidence: they share what makes the image hard, and a model that does
better in one of them does so in most. So images are the units, the mean over an image's draws is
its value, and a paired t-test over these values tells how other images of the same kind would come
out.

Student's own test assumes gaussian differences. If a few images change far more than the others, a
sample that happens to lack them has too small a mean and too small an error, and looks certain. So
t is corrected for skewness, including some that the sample need not show, before its tail is
computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
"""The confidence of all claims about a run together: of 100 runs, at most about 5 get a claim about
their validation that other images would not confirm. By simulation, that holds for differences as
skewed as lognormal ones with a sigma of 1 (skewness 6.2), from 4 images on and with ten
validations; with forty it rises to 6. No test of a mean holds it for all possible differences
(Bahadur and Savage 1956, Annals of Mathematical Statistics 27)."""

_TIMES = 2.0
_MARGIN, _LARGEST_MARGIN = 12.0, 2.5
"""The skewness that differences are assumed to have if the sample has skewness g: 2 g, plus 12 over
the square root of the number of images, but this addition is at most 2.5. Small samples show little
of the skewness of their source. The numbers are the smallest round ones with which runs of 2 and of
10 validations keep `CONFIDENCE` if differences are lognormal and drawn independently at each;
`test_evidence.py` counts."""


@dataclass(frozen=True)
class Difference:
    """How much one model's loss is above another's, over the same images.

    Attributes:
        mean: The mean difference; below 0 if the first model is better.
        standard_error: Standard error of the mean, over images.
        images: Number of independent values, at least 2.
        skewness: Skewness of these values: the third central moment over the second to the power of
            3/2.
    """

    mean: float
    standard_error: float
    images: int
    skewness: float = 0.0

    def is_above(self, chance: float) -> bool:
        """Return whether the difference is above 0, with at most this probability of error."""
        return self.mean > 0 and self._tail() <= chance

    def is_below(self, chance: float) -> bool:
        """Return whether the difference is below 0, with at most this probability of error."""
        return self.mean < 0 and self._tail() <= chance

    def is_clear_if_gaussian(self, chance: float) -> bool:
        """Return whether Student's t alone finds the difference clear, as for gaussian values."""
        return self.mean != 0 and t_tail(self._t, self.images - 1) <= chance

    @property
    def _t(self) -> float:
        return math.inf if self.standard_error == 0 else abs(self.mean) / self.standard_error

    def _tail(self) -> float:
        """Return the probability of a mean so far to one side if there is no difference."""
        # a long tail that the sample lacks is on the opposite side of 0 from its mean
        seen = self.skewness if self.mean < 0 else -self.skewness
        margin = min(_LARGEST_MARGIN, _MARGIN / math.sqrt(self.images))
        t = without_skewness(self._t, max(0.0, _TIMES * seen + margin), self.images)
        return t_tail(t, self.images - 1)


def difference(one: Sequence[float], other: Sequence[float]) -> Difference | None:
    """Return the paired difference `one` - `other`; None unless of the same two or more."""
    if len(one) != len(other) or len(one) < 2:
        return None
    values = [a - b for a, b in zip(one, other, strict=True)]
    error = standard_error(values)
    if error is None:
        return None
    return Difference(math.fsum(values) / len(values), error, len(one), skewness_of(values))


def skewness_of(values: Sequence[float]) -> float:
    """Return the skewness of one or more values; 0 if all are equal."""
    mean = math.fsum(values) / len(values)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    if spread == 0:
        return 0.0
    return math.fsum(((value - mean) / spread) ** 3 for value in values) / len(values)


def without_skewness(t: float, skewness: float, number: int) -> float:
    """Return the |t| that gaussian values would have: its tail is that of Student's t.

    The mean of values with a long tail to one side lies too far to the other side, in units of its
    own error, more often than Student's t: for skewness g and n values a quantile z of t is at
    about z + g (2 z^2 + 1) / (6 sqrt(n)) (the Cornish-Fisher expansion of the Studentized mean:
    Johnson 1978, Journal of the American Statistical Association 73, p. 536; Hall 1992, "The
    Bootstrap and Edgeworth Expansion", section 2.6). This is its inverse, and 0 where that would be
    below 0.

    Args:
        t: 0 or more, or infinite.
        skewness: g, 0 or more: towards the side opposite to the mean.
        number: n.
    """
    shift = skewness / (6 * math.sqrt(number))
    if shift == 0 or math.isinf(t):
        return t
    if t <= shift:
        return 0.0
    # the root of 2 shift z^2 + z - (t - shift), in the form that loses no digits for small shifts
    return 2 * (t - shift) / (1 + math.sqrt(1 + 8 * shift * (t - shift)))


def standard_error(values: Sequence[float]) -> float | None:
    """Return the standard error of the mean of independent values; None for fewer than two."""
    number = len(values)
    if number < 2:
        return None
    mean = math.fsum(values) / number
    squares = math.fsum((value - mean) ** 2 for value in values)
    return math.sqrt(squares / (number - 1) / number)


def t_tail(t: float, degrees: int) -> float:
    """Return the probability that Student's t is above `t`, for integer degrees of freedom.

    By the finite series of Abramowitz and Stegun 1964, 26.7.3 and 26.7.4.

    Args:
        t: 0 or more.
        degrees: Degrees of freedom, 1 or more.
    """
    angle = math.atan(t / math.sqrt(degrees))  # a right angle if t is infinite
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
    """Return the error probability per comparison with which all together keep `CONFIDENCE`.

    Bonferroni's correction: it holds however the comparisons depend on each other, as those of one
    run do.
    """
    return (1 - CONFIDENCE) / max(1, comparisons)
