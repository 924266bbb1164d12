"""The learning rate as a function of the step, so that resuming has no scheduler state to restore.

Factors in [0, 1] multiply each parameter group's learning rate. Shapes with transformers' names
equal those of its `optimization.py` as sd-scripts calls them (`library/train_util.py`,
get_scheduler_fix); steps are optimizer steps, on any number of processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

StepCount = Callable[[int], int]
"""Total steps of a run -> a number of steps, for settings that may be a fraction of the run."""

Levels = Sequence[tuple[float, int | None]]
"""Values, each with the step before which it applies; None means until the end."""

LrSchedule = Callable[[int, int], float]
"""(the next step, counted from 0; total steps) -> factor."""

Shape = Callable[[float], float]
"""Progress after the warm-up, in [0, 1] -> factor."""

POLYNOMIAL_END = 1e-7  # the final learning rate of transformers' polynomial schedule
INVERSE_SQRT_TIMESCALE = 10_000  # transformers' default without a warm-up


def linear(progress: float) -> float:
    """Return the factor of a straight line from 1 to 0."""
    return max(0.0, 1 - progress)


def cosine(progress: float) -> float:
    """Return the factor of half a cosine from 1 to 0; Loshchilov and Hutter 2017, eq. 5.

    arXiv:1608.03983.
    """
    return max(0.0, 0.5 * (1 + math.cos(math.pi * progress)))


def rex(progress: float) -> float:
    """Return the REX factor (1 - p) / (1/2 + (1 - p) / 2), which falls slowly, then steeply.

    Chen et al. 2021, arXiv:2107.04197.
    """
    left = max(0.0, 1 - progress)
    return left / (0.5 + 0.5 * left)


def cosine_with_restarts(cycles: int) -> Shape:
    """Return a shape of `cycles` half cosines, each from 1 to 0; arXiv:1608.03983."""

    def shape(progress: float) -> float:
        return 0.0 if progress >= 1 else cosine(cycles * progress % 1.0)

    return shape


def cosine_to(least: float, cycles: int) -> Shape:
    """Return a cosine shape of `cycles` half periods between 1 and `least`."""

    def shape(progress: float) -> float:
        wave = 0.5 * (1 + math.cos(math.pi * cycles * progress))
        return max(0.0, wave * (1 - least) + least)

    return shape


def polynomial(power: float, end: float) -> Shape:
    """Return the shape of (1 - progress)^power, scaled to fall from 1 to `end` and then stay."""

    def shape(progress: float) -> float:
        return end if progress > 1 else (1 - end) * (1 - progress) ** power + end

    return shape


def after_warmup(warmup_steps: StepCount, shape: Shape) -> LrSchedule:
    """Return a schedule that rises linearly from 0 and then follows `shape` over the rest."""

    def factor(step: int, total: int) -> float:
        warmup = warmup_steps(total)
        if step < warmup:
            return step / warmup
        return shape((step - warmup) / max(1, total - warmup))

    return factor


def inverse_sqrt(warmup_steps: StepCount, timescale: int | None) -> LrSchedule:
    """Return a schedule of 1 / sqrt(steps / time scale) after a warm-up.

    Zhai et al. 2022 (arXiv:2106.04560).

    Args:
        warmup_steps: The number of steps over which the factor rises from 0 to 1.
        timescale: The time scale in steps; None takes the number of warm-up steps, or transformers'
            10,000 if there are none.
    """

    def factor(step: int, total: int) -> float:
        warmup = warmup_steps(total)
        if step < warmup:
            return step / warmup
        scale = timescale or warmup or INVERSE_SQRT_TIMESCALE
        return 1 / math.sqrt((step + scale - warmup) / scale)

    return factor


def warmup_stable_decay(
    warmup_steps: StepCount, decay_steps: StepCount, least: float, cycles: int
) -> LrSchedule:
    """Return a schedule that rises to 1, stays there, and decays to `least` along a cosine.

    The warm-up starts at `least`. Hu et al. 2024 (arXiv:2404.06395).
    """
    fall = cosine_to(least, cycles)

    def factor(step: int, total: int) -> float:
        warmup, decay = warmup_steps(total), decay_steps(total)
        if step < warmup:
            return step / warmup * (1 - least) + least
        begin = total - decay
        if step < begin:
            return 1.0
        return fall((step - begin) / max(1, decay)) if step < total else least

    return factor


def piecewise(levels: Levels, unit: float) -> LrSchedule:
    """Return a schedule of constant levels, each until its step; factors are levels over `unit`."""

    def factor(step: int, total: int) -> float:  # noqa: ARG001
        value = next(value for value, until in levels if until is None or step < until)
        return value / unit

    return factor
