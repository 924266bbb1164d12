"""Builds the learning-rate schedule from the settings."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from impasto.config.schedule import ScheduleConfig
from impasto.step_rules import counted, parse_rules
from impasto.training.optim.lr_schedules import (
    POLYNOMIAL_END,
    LrSchedule,
    Shape,
    after_warmup,
    cosine,
    cosine_to,
    cosine_with_restarts,
    inverse_sqrt,
    linear,
    piecewise,
    polynomial,
    rex,
    warmup_stable_decay,
)


def build_lr_schedule(config: ScheduleConfig, lr: float) -> LrSchedule:
    """Build the learning-rate schedule that the settings select.

    Args:
        config: The section `schedule`.
        lr: The optimizer's learning rate, for kinds whose numbers are rates instead of factors.
    """
    least = config.min_lr_ratio or 0.0
    warmup = partial(counted, config.warmup_steps)
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
        return after_warmup(warmup, shapes[config.kind])
    others: dict[str, Callable[[], LrSchedule]] = {
        "inverse_sqrt": lambda: inverse_sqrt(warmup, config.timescale),
        "warmup_stable_decay": lambda: warmup_stable_decay(
            warmup, partial(counted, config.decay_steps), least, config.cycles
        ),
        "piecewise_constant": lambda: piecewise(parse_rules(config.rules), 1.0),
        "rates": lambda: piecewise(parse_rules(config.rules), lr),
    }
    return others[config.kind]()
