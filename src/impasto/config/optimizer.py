"""Settings of the optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field, ValidationInfo, model_validator

from impasto.config.base import Section, is_of_begun

Rate = Annotated[float, Field(gt=0, le=10)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Section):
    """The optimizer and its hyperparameters."""

    kind: str = "adamw"
    """The optimizer: `adamw` (PyTorch's, fused); `adamw8bit`, `paged_adamw`, `paged_adamw8bit`,
    `lion`, `lion8bit`, `paged_lion8bit`, `sgd8bit` (bitsandbytes); `adafactor`, `prodigy`,
    `dadapt_adam`, `dadapt_lion` and others, `adamw_schedule_free`, `radam_schedule_free`,
    `sgd_schedule_free`; any name of `torch.optim` or of the pytorch-optimizer collection; or any
    class by its import path, such as `torch.optim.Adam`."""

    lr: Rate = 5e-6
    """Peak learning rate of the schedule; 1e-6 to 1e-5 is usual for a whole U-Net, a third of that
    for Lion, and 1 for Prodigy and D-Adaptation, which find the rate themselves. The default for a
    hypernetwork is 1e-5."""

    betas: tuple[Beta, ...] | None = None
    """Decay rates of the running means of the gradient and of its square; off means the optimizer's
    default, 0.9 and 0.999 for AdamW."""

    eps: Annotated[float, Field(gt=0)] | None = None
    """Term added to the denominator for numerical stability; off means the optimizer's default,
    1e-8 for AdamW."""

    weight_decay: Annotated[float, Field(ge=0)] | None = None
    """Fraction of each weight that is subtracted per unit of learning rate and step; off means the
    optimizer's default, 0.01 for AdamW."""

    start_decay: Annotated[float, Field(ge=0)] = 0.0
    """Pull towards the weights at the start of training, which keeps the model near the base model
    (L2-SP, arXiv:1802.01483): the fraction of a weight's change that is undone per unit of learning
    rate and step, separately from the gradient, as in AdamW's weight decay. A change that gradients
    do not renew shrinks to exp(-lr * steps * start_decay): with a rate of 1e-5, 100 leaves 37 % of
    it after 1,000 steps. Takes a copy of the trained weights, 4 bytes per weight. 0 means none."""

    arguments: dict[str, Any] = Field(default_factory=dict)
    """Further keyword arguments of the optimizer, such as `{d_coef = 0.8}`."""

    @model_validator(mode="after")
    def _arguments_are_finite(self, info: ValidationInfo) -> OptimizerConfig:
        for name, value in self.arguments.items():
            is_twice = name in _OWN and getattr(self, name) is not None
            if is_twice and not is_of_begun(info):
                raise ValueError(f"{name} and arguments.{name} are both given; remove one")
            if any(not math.isfinite(number) for number in _numbers_in(value)):
                raise ValueError(f"arguments.{name} is {value}; expected finite numbers")
        return self

    def given(self) -> dict[str, Any]:
        """Return all arguments set beyond the optimizer's defaults, without the learning rate."""
        named = {name: getattr(self, name) for name in _OWN}
        return {k: v for k, v in named.items() if v is not None} | dict(self.arguments)


_OWN = ("betas", "eps", "weight_decay")
"""Arguments of optimizers that have settings of their own."""


def _numbers_in(value: Any) -> Iterator[float]:
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _numbers_in(item)
    elif isinstance(value, (int, float)):
        yield value
