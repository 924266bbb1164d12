"""What a run may be given in code instead of settings."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from impasto.diffusion.timesteps import TimestepSampler
from impasto.diffusion.weighting import LossWeight
from impasto.training.optim.lr_schedules import LrSchedule
from impasto.training.optim.optimizers import BuildOptimizer, build_optimizer


@dataclass(frozen=True)
class Overrides:
    """What a run may replace without a setting for it: used by recipes that train from scratch.

    Attributes:
        timesteps: Which noise levels are trained on; None takes the settings'.
        loss_weight: How much each of them counts; None takes the settings'.
        build_optimizer: Makes the optimizer from the parts that learn.
        lr_schedule: The factor on the learning rate by step; None takes the settings'.
    """

    timesteps: TimestepSampler | None = None
    loss_weight: LossWeight | None = None
    build_optimizer: BuildOptimizer = build_optimizer
    lr_schedule: LrSchedule | None = None

    def given(self) -> dict[str, Any]:
        """What is given in code, by name."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return {n: p for n, p in parts.items() if p is not None and p is not build_optimizer}
