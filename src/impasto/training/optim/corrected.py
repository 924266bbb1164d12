"""Corrections of library optimizers whose steps differ from the code that they reimplement."""

from __future__ import annotations

import functools
from typing import Any

import torch

from impasto.optimizer_table import COLLECTION


def corrected(kind: Any) -> Any:
    """Return a corrected subclass of an optimizer class, or the class itself if it needs none."""
    is_of_collection = kind.__module__.partition(".")[0] == COLLECTION
    if is_of_collection and kind.__name__ == "ScheduleFreeRAdam":
        return _with_rate_at_first(kind)
    return kind


@functools.cache
def _with_rate_at_first(kind: Any) -> Any:
    """Return a schedule-free RAdam class whose first steps use the learning rate of the settings.

    `silent_sgd_phase=False` requests SGD steps until the second moment is reliable. The authors'
    code takes them at the learning rate (facebookresearch/schedule_free,
    `radam_schedulefree.py`); pytorch-optimizer 4.1 always takes them at a rate of 1.
    """

    class ScheduleFreeRAdam(kind):  # type: ignore[misc]
        def get_rectify_step_size(self, *, lr: float, **others: Any) -> tuple[float, float]:
            rate, length = super().get_rectify_step_size(lr=lr, **others)
            of_sgd = 0.0 if self.defaults["silent_sgd_phase"] else lr
            return of_sgd if rate < 0 else rate, length

    return ScheduleFreeRAdam


def skip_steps_without_rate(optimizer: torch.optim.Optimizer) -> None:
    """Make an optimizer that finds its own learning rate skip steps whose rate is 0.

    The first steps of a warm-up are such. prodigyopt and dadaptation neither use their gradients
    nor count them; pytorch-optimizer does both, and would find a different rate.
    """
    step = optimizer.step

    @functools.wraps(step)
    def step_with_rate(*args: Any, **kwargs: Any) -> Any:
        has_rate = any(group["lr"] for group in optimizer.param_groups)
        return step(*args, **kwargs) if has_rate else None

    optimizer.step = step_with_rate  # type: ignore[method-assign]
