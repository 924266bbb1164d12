"""The learning rate as a function of the step, so that resuming has no scheduler state to restore.

Factors in [0, 1] multiply each parameter group's own rate. The shapes equal those of transformers
(`optimization.py`, get_scheduler), which sd-scripts uses too.
"""

from __future__ import annotations

import math
from collections.abc import Callable

LrSchedule = Callable[[int, int], float]


def constant(step: int, total: int) -> float:  # noqa: ARG001
    """The full rate throughout."""
    return 1.0


def linear(step: int, total: int) -> float:
    """A straight line from 1 at step 0 to 0 at `total`."""
    return max(0.0, 1 - step / max(1, total))


def cosine(step: int, total: int) -> float:
    """Half a cosine from 1 to 0; Loshchilov and Hutter 2017 (arXiv:1608.03983), eq. 5."""
    return max(0.0, 0.5 * (1 + math.cos(math.pi * step / max(1, total))))


SHAPES: dict[str, LrSchedule] = {"constant": constant, "linear": linear, "cosine": cosine}


def build_lr_schedule(kind: str, warmup_steps: int) -> LrSchedule:
    """A shape after a straight rise from 0 over `warmup_steps` updates.

    The result takes the step about to be done, from 0, and the number of steps in all.
    """
    shape = SHAPES[kind]

    def factor(step: int, total: int) -> float:
        if step < warmup_steps:
            return step / warmup_steps
        return shape(step - warmup_steps, total - warmup_steps)

    return factor
