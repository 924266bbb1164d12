"""Averages of weights whose length is chosen after training (post-hoc EMA).

Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models"
(arXiv:2312.02696), section 3 and appendix C. An average at step t weights the weights of step tau
in proportion to tau^gamma. Its length is given by sigma_rel, the standard deviation of that profile
as a fraction of t. Periodic snapshots of two such averages are combined by least squares into an
average of another length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from impasto.training.optim.ema import Decay

TRACKED = (0.05, 0.10)
"""The sigma_rel of the averages that are tracked while training, as in the paper."""

SHORTEST, LONGEST = 0.01, 0.28
"""The range of sigma_rel that may be requested; the mean of all steps has 1 / sqrt(12) = 0.289."""

Floats = npt.NDArray[np.float64]


def gamma_of(sigma_rel: float) -> float:
    """Return the exponent gamma >= 0 of the profile with a relative standard deviation.

    The largest root of gamma^3 + 7 gamma^2 + (16 - sigma^-2) gamma + 12 - sigma^-2, which is eq. 7
    (sigma = sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3))) solved for gamma; algorithm 2.
    """
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def power_decay(sigma_rel: float, every: int = 1) -> Decay:
    """Return the decay of a power-function average that is updated every `every` steps.

    (1 - every / t)^(gamma + 1) for the t-th step: eq. 4, for `every` steps at once.
    """
    gamma = gamma_of(sigma_rel)

    def decay(step: int) -> float:
        return float((1 - every / (step + 1)) ** (gamma + 1))

    return decay


@dataclass(frozen=True)
class Profile:
    """The profile of an average: how it weights the weights of each step.

    Attributes:
        step: Steps completed when the average was stored, at least 1.
        sigma_rel: The length of the average, as a relative standard deviation.
    """

    step: int
    sigma_rel: float


@dataclass(frozen=True)
class Fit:
    """A combination of profiles that approximates another one.

    Attributes:
        coefficients: The coefficient of each profile; they add up to 1, and some are negative.
        error: The norm of the difference from the wanted profile, relative to the wanted profile's
            norm.
    """

    coefficients: Sequence[float]
    error: float


def fit(known: Sequence[Profile], wanted: Profile) -> Fit:
    """Return the least-squares combination of profiles that is nearest to another: algorithm 3.

    Args:
        known: The profiles to combine, at least one, none of a later step than `wanted`.
        wanted: The profile to approximate.
    """
    products = _inner_products(known, known)
    with_wanted = _inner_products(known, [wanted])[:, 0]
    coefficients = np.linalg.lstsq(products, with_wanted, rcond=None)[0]
    coefficients /= coefficients.sum()
    own = float(_inner_products([wanted], [wanted])[0, 0])
    left = float(coefficients @ products @ coefficients - 2 * coefficients @ with_wanted + own)
    return Fit(coefficients.tolist(), float(np.sqrt(max(0.0, left) / own)))


def _inner_products(ones: Sequence[Profile], others: Sequence[Profile]) -> Floats:
    """Return the inner products of profiles as functions of time: [ones, others], algorithm 3.

    (a + 1)(b + 1) (s / t)^(exponent of the later one) / ((a + b + 1) t), for exponents a and b and
    times s <= t.
    """
    steps, gammas = _columns(ones)
    other_steps, other_gammas = _columns(others)
    a, b = gammas[:, None], other_gammas[None, :]
    s, t = steps[:, None], other_steps[None, :]
    ratio = (s / t) ** np.where(s < t, b, -a)
    found: Floats = (a + 1) * (b + 1) * ratio / ((a + b + 1) * np.maximum(s, t))
    return found


def _columns(profiles: Sequence[Profile]) -> tuple[Floats, Floats]:
    steps = np.array([profile.step for profile in profiles], dtype=np.float64)
    return steps, np.array([gamma_of(profile.sigma_rel) for profile in profiles])
