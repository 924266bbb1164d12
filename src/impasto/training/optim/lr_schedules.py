"""The learning rate as a function of the step, so that resuming has no scheduler state to restore.

Factors in [0, 1] multiply each parameter group's own rate. The shapes of transformers' names equal
those of its `optimization.py` as sd-scripts calls them (`library/train_util.py`,
get_scheduler_fix); steps are those of the optimizer, on any number of processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

StepCount = Callable[[int], int]
"""The number of steps of a run -> how many of them, of what may be given as a share."""

Levels = Sequence[tuple[float, int | None]]
"""Values, each with the step before which it holds; None is for ever."""

LrSchedule = Callable[[int, int], float]
"""(the step about to be done, from 0; the number of steps in all) -> factor."""

Shape = Callable[[float], float]
"""Progress after the warm-up, in [0, 1] -> factor."""

POLYNOMIAL_END = 1e-7  # the rate that transformers' polynomial ends at
INVERSE_SQRT_TIMESCALE = 10_000  # transformers' default without a warm-up


def linear(progress: float) -> float:
    """A straight line from 1 to 0."""
    return max(0.0, 1 - progress)


def cosine(progress: float) -> float:
    """Half a cosine from 1 to 0; Loshchilov and Hutter 2017 (arXiv:1608.03983), eq. 5."""
    return max(0.0, 0.5 * (1 + math.cos(math.pi * progress)))


def rex(progress: float) -> float:
    """Slow at first, then steep: (1 - p) / (1/2 + (1 - p) / 2); Chen et al. 2021.

    arXiv:2107.04197, REX.
    """
    left = max(0.0, 1 - progress)
    return left / (0.5 + 0.5 * left)


def cosine_with_restarts(cycles: int) -> Shape:
    """So many half cosines, each from 1 to 0; arXiv:1608.03983."""

    def shape(progress: float) -> float:
        return 0.0 if progress >= 1 else cosine(cycles * progress % 1.0)

    return shape


def cosine_to(least: float, cycles: int) -> Shape:
    """A cosine of so many half periods between 1 and `least`."""

    def shape(progress: float) -> float:
        wave = 0.5 * (1 + math.cos(math.pi * cycles * progress))
        return max(0.0, wave * (1 - least) + least)

    return shape


def polynomial(power: float, end: float) -> Shape:
    """(1 - progress)^power from 1 to `end`, and `end` from then on."""

    def shape(progress: float) -> float:
        return end if progress > 1 else (1 - end) * (1 - progress) ** power + end

    return shape


def after_warmup(warmup_steps: StepCount, shape: Shape) -> LrSchedule:
    """A shape over what is left after a straight rise from 0."""

    def factor(step: int, total: int) -> float:
        warmup = warmup_steps(total)
        if step < warmup:
            return step / warmup
        return shape((step - warmup) / max(1, total - warmup))

    return factor


def inverse_sqrt(warmup_steps: StepCount, timescale: int | None) -> LrSchedule:
    """1 / sqrt of the steps in units of a time scale; Zhai et al. 2022 (arXiv:2106.04560).

    Args:
        warmup_steps: Over how many the factor rises from 0.
        timescale: In steps; None takes the warm-up, or transformers' 10,000 without one.
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
    """A rise, a level, and a cosine at the end; Hu et al. 2024 (arXiv:2404.06395)."""
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
    """Levels, each until its step; the numbers are factors, or rates in units of `unit`."""

    def factor(step: int, total: int) -> float:  # noqa: ARG001
        value = next(value for value, until in levels if until is None or step < until)
        return value / unit

    return factor
