"""The learning rate as a function of the step, so that resuming has no scheduler state to restore.

Factors in [0, 1] multiply each parameter group's own rate. The shapes of transformers' names equal
those of its `optimization.py` as sd-scripts calls them (`library/train_util.py`,
get_scheduler_fix); steps are optimizer updates, on any number of processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from impasto.config.schedule import ScheduleConfig, counted, parse_rules

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


def build_lr_schedule(config: ScheduleConfig, lr: float) -> LrSchedule:
    """The schedule of the settings.

    Args:
        config: The settings.
        lr: The optimizer's rate, for what is given in rates and not in factors of it.
    """
    least = config.min_lr_ratio or 0.0
    shapes: dict[str, Shape] = {
        "constant": lambda _: 1.0,
        "linear": linear,
        "cosine": cosine,
        "rex": rex,
        "cosine_with_restarts": cosine_with_restarts(config.cycles),
        "cosine_with_min_lr": cosine_to(least, config.cycles),
        "polynomial": polynomial(config.power, min(1.0, POLYNOMIAL_END / lr)),
    }
    if config.kind in shapes:
        return after_warmup(config, shapes[config.kind])
    others: dict[str, Callable[[], LrSchedule]] = {
        "inverse_sqrt": lambda: inverse_sqrt(config),
        "warmup_stable_decay": lambda: warmup_stable_decay(config),
        "piecewise_constant": lambda: piecewise(config.rules, 1.0),
        "rates": lambda: piecewise(config.rules, lr),
    }
    return others[config.kind]()


def after_warmup(config: ScheduleConfig, shape: Shape) -> LrSchedule:
    """A shape over what is left after a straight rise from 0."""

    def factor(step: int, total: int) -> float:
        warmup = counted(config.warmup_steps, total)
        if step < warmup:
            return step / warmup
        return shape((step - warmup) / max(1, total - warmup))

    return factor


def inverse_sqrt(config: ScheduleConfig) -> LrSchedule:
    """1 / sqrt of the steps in units of a time scale; Zhai et al. 2022 (arXiv:2106.04560)."""

    def factor(step: int, total: int) -> float:
        warmup = counted(config.warmup_steps, total)
        if step < warmup:
            return step / warmup
        timescale = config.timescale or warmup or INVERSE_SQRT_TIMESCALE
        return 1 / math.sqrt((step + timescale - warmup) / timescale)

    return factor


def warmup_stable_decay(config: ScheduleConfig) -> LrSchedule:
    """A rise, a level, and a cosine at the end; Hu et al. 2024 (arXiv:2404.06395)."""
    least = config.min_lr_ratio or 0.0
    fall = cosine_to(least, config.cycles)

    def factor(step: int, total: int) -> float:
        warmup, decay = (counted(s, total) for s in (config.warmup_steps, config.decay_steps))
        if step < warmup:
            return step / warmup * (1 - least) + least
        begin = total - decay
        if step < begin:
            return 1.0
        return fall((step - begin) / max(1, decay)) if step < total else least

    return factor


def piecewise(rules: str, unit: float) -> LrSchedule:
    """Levels, each until its step; the numbers are factors, or rates in units of `unit`."""
    levels = parse_rules(rules)

    def factor(step: int, total: int) -> float:  # noqa: ARG001
        value = next(value for value, until in levels if until is None or step < until)
        return value / unit

    return factor
