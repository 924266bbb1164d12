"""Settings of the learning-rate schedule."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from impasto.config.base import Section, is_of_begun
from impasto.step_rules import Steps, counted, is_count, parse_rules

OPTION_USERS = {
    "cycles": {"cosine_with_restarts", "cosine_with_min_lr", "warmup_stable_decay"},
    "power": {"polynomial"},
    "timescale": {"inverse_sqrt"},
    "min_lr_ratio": {"cosine_with_min_lr", "warmup_stable_decay"},
    "decay_steps": {"warmup_stable_decay"},
    "rules": {"piecewise_constant", "rates"},
}
"""Setting -> the kinds of schedule on which it has an effect."""


class ScheduleConfig(Section):
    """How the learning rate changes over the run."""

    kind: Literal[
        "constant", "linear", "cosine", "cosine_with_restarts", "cosine_with_min_lr", "polynomial",
        "inverse_sqrt", "warmup_stable_decay", "rex", "piecewise_constant", "rates",
    ] = "constant"  # fmt: skip
    """Shape of the schedule after the warm-up: `constant`; `linear`, `cosine` and `rex` fall to 0;
    `cosine_with_restarts`; `cosine_with_min_lr`; `polynomial`; `inverse_sqrt`;
    `warmup_stable_decay`, constant until `decay_steps` before the end and then a cosine; or
    `rules`, read as factors (`piecewise_constant`) or as learning rates (`rates`)."""

    warmup_steps: Steps = 0
    """Optimizer steps over which the rate rises linearly from 0: a number, a fraction of the run
    below 1, or a percentage such as "5%"."""

    decay_steps: Steps = 0
    """Optimizer steps over which the rate falls at the end, in the same forms as `warmup_steps`.
    Only for `warmup_stable_decay`, which needs it."""

    cycles: Annotated[int, Field(ge=1)] = 1
    """Number of cycles: how often the cosine of `cosine_with_restarts` runs; for
    `cosine_with_min_lr` and `warmup_stable_decay`, the number of half periods of the cosine."""

    power: Annotated[float, Field(gt=0)] = 1.0
    """Exponent of `polynomial`: 1 is a straight line, 2 a parabola."""

    timescale: Annotated[int, Field(ge=1)] | None = None
    """Steps after which the rate of `inverse_sqrt` has fallen to 0.71 of its peak; off means
    `warmup_steps`, or 10,000 if that is 0."""

    min_lr_ratio: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Fraction of the peak rate that is left at the end of `cosine_with_min_lr` and
    `warmup_stable_decay`."""

    rules: str = ""
    """Rules of a stepwise schedule. For `piecewise_constant`, `1:300, 0.1:600, 0.01` is the whole
    rate for 300 steps, a tenth up to step 600, then a hundredth. For `rates`, as in A1111,
    `1e-5:100, 5e-6:1000, 1e-6` are the rates themselves."""

    @property
    def depends_on_length(self) -> bool:
        """Whether the rate at a step depends on the length of the run."""
        fixed = {"constant", "inverse_sqrt", "piecewise_constant", "rates"}
        return self.kind not in fixed or not is_count(self.warmup_steps)

    def least_steps(self, total: int) -> int:
        """Return how many of `total` steps warm-up and final decay take; 0 for other kinds."""
        if self.kind != "warmup_stable_decay":
            return 0
        return counted(self.warmup_steps, total) + counted(self.decay_steps, total)

    @field_validator("warmup_steps", "decay_steps")
    @classmethod
    def _steps_are_readable(cls, value: Any) -> Any:
        counted(value, 1000)
        return value

    @model_validator(mode="after")
    def _options_are_used(self, info: ValidationInfo) -> ScheduleConfig:
        for name, kinds in OPTION_USERS.items():
            is_given = getattr(self, name) != type(self).model_fields[name].default
            if is_given and self.kind not in kinds:
                raise ValueError(
                    f"{name} has no effect on the kind {self.kind}; it belongs to "
                    f"{' and '.join(sorted(kinds))}"
                )
        falls = self.kind != "warmup_stable_decay" or counted(self.decay_steps, 1_000_000)
        if not falls and not is_of_begun(info):
            raise ValueError(
                'warmup_stable_decay needs decay_steps, such as "10%", or the rate would never '
                "fall; use the kind constant for a constant rate"
            )
        if self.kind in OPTION_USERS["rules"]:
            parse_rules(self.rules)
            if counted(self.warmup_steps, 1000):
                raise ValueError(f"warmup_steps has no effect on the kind {self.kind}")
        return self
