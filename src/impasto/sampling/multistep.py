"""diffusers' linear multistep sampler without SciPy, which it needs for one integral."""

from __future__ import annotations

import math

import numpy as np
from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteScheduler


class LinearMultistepScheduler(LMSDiscreteScheduler):  # type: ignore[misc]
    """The linear multistep method over noise levels (Adams and Bashforth's, uneven steps).

    Its name in Stable Diffusion, and its order of 4, are those of k-diffusion's `sample_lms`.
    diffusers provides this class only if SciPy is installed (some 110 MB) and integrates by
    adaptive quadrature to 1e-4; the integrand is a polynomial, so Gauss' quadrature is exact.
    """

    def get_lms_coefficient(self, order: int, t: int, current_order: int) -> float:
        """Return the weight of one earlier slope in a step.

        Args:
            order: Number of slopes that the step combines, at least 1.
            t: Index of the step, from sigma[t] to sigma[t + 1].
            current_order: Index of the slope, counted back from the newest, 0 to order - 1.

        Returns:
            The integral of that slope's Lagrange polynomial over the step.
        """
        sigmas = [float(sigma) for sigma in self.sigmas[t - order + 1 : t + 2]]
        at = sigmas[-2::-1]  # positions of the slopes, the newest first
        nodes, weights = np.polynomial.legendre.leggauss(order // 2 + 1)  # exact to degree order
        half, middle = (sigmas[-1] - at[0]) / 2, (sigmas[-1] + at[0]) / 2
        return half * math.fsum(
            weight * _lagrange(at, current_order, middle + half * node)
            for node, weight in zip(nodes, weights, strict=True)
        )


def _lagrange(at: list[float], which: int, x: float) -> float:
    """Evaluate at x the polynomial that is 1 at the point `which` and 0 at the others."""
    others = [point for index, point in enumerate(at) if index != which]
    return math.prod((x - point) / (at[which] - point) for point in others)
