"""Optimizers of libraries whose steps differ from those of the code that they follow, put right."""

from __future__ import annotations

import functools
from typing import Any

import torch

from impasto.optimizer_table import COLLECTION


def corrected(kind: Any) -> Any:
    """A class to take in the place of an optimizer's; the same where nothing is to be corrected."""
    is_of_collection = kind.__module__.partition(".")[0] == COLLECTION
    if is_of_collection and kind.__name__ == "ScheduleFreeRAdam":
        return _with_rate_at_first(kind)
    return kind


@functools.cache
def _with_rate_at_first(kind: Any) -> Any:
    """RAdam without a schedule, whose first steps have the rate that is set.

    `silent_sgd_phase=False` asks for steps of SGD until the second moment is worth something. The
    authors' code takes them at the learning rate (facebookresearch/schedule_free,
    `radam_schedulefree.py`); pytorch-optimizer 4.1 takes a rate of 1, whatever is set.
    """

    class ScheduleFreeRAdam(kind):  # type: ignore[misc]
        def get_rectify_step_size(self, *, lr: float, **others: Any) -> tuple[float, float]:
            rate, length = super().get_rectify_step_size(lr=lr, **others)
            of_sgd = 0.0 if self.defaults["silent_sgd_phase"] else lr
            return of_sgd if rate < 0 else rate, length

    return ScheduleFreeRAdam


def skip_steps_without_rate(optimizer: torch.optim.Optimizer) -> None:
    """Have an optimizer that finds its own rate leave out steps whose rate is 0.

    Such are the first of a warm-up. prodigyopt and dadaptation look at no gradient of theirs and do
    not count them; pytorch-optimizer does both, and finds another rate from there on.
    """
    step = optimizer.step

    @functools.wraps(step)
    def step_with_rate(*args: Any, **kwargs: Any) -> Any:
        has_rate = any(group["lr"] for group in optimizer.param_groups)
        return step(*args, **kwargs) if has_rate else None

    optimizer.step = step_with_rate  # type: ignore[method-assign]
