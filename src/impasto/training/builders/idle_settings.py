"""Settings that have no effect beside a part that is given in code in their place."""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import Any

from impasto.config.optimizer import OptimizerConfig
from impasto.config.run import RunConfig
from impasto.config.schedule import ScheduleConfig

_REPLACED = {
    "timesteps": (
        "timesteps.sampling", "timesteps.first", "timesteps.last", "timesteps.logit_mean",
        "timesteps.logit_std",
    ),
    "loss_weight": (
        "loss.min_snr_gamma", "loss.soft_min_snr_gamma", "loss.uncertainty", "loss.debiased",
        "loss.v_loss_as_noise_loss", "loss.noise_loss_like_v", "loss.snr_schedule",
    ),
    "error": ("loss.kind", "loss.huber_schedule", "loss.huber_c", "loss.huber_scale"),
    "noise": (
        "noise.offset", "noise.offset_random_strength", "noise.adaptive_scale",
        "noise.multires_iterations", "noise.multires_discount", "noise.immiscible",
        "noise.input_perturbation", "noise.input_perturbation_random_strength",
    ),
    "lr_schedule": tuple(f"schedule.{name}" for name in ScheduleConfig.model_fields),
}  # fmt: skip
"""Name of a part -> the settings that nothing reads where it is given in code."""

_OF_OPTIMIZERS = ("betas", "eps", "weight_decay", "arguments")
"""Settings that the function which builds the optimizer reads, or nobody does."""

_READS_ALL = {"given", "model_dump", "model_dump_json", "model_copy", "__dict__"}


def idle_settings(config: RunConfig, given: Iterable[str]) -> list[str]:
    """Why each setting that is not as usual has no effect beside the parts that are given in code.

    Args:
        config: The settings.
        given: The names of the parts.

    Returns:
        A clause for each such setting: its path, its value, and the part that replaces it.
    """
    found = []
    for part in given:
        for path in _REPLACED.get(part, ()):
            section, name = path.split(".")
            settings = getattr(config, section)
            field = type(settings).model_fields.get(name)
            if field is None:  # of another kind of loss
                continue
            value = getattr(settings, name)
            if value != field.get_default(call_default_factory=True) and value != _USUAL.get(path):
                found.append(_clause(path, value, part))
    return found


_USUAL = {"loss.kind": "l2"}
"""What is usual where a field has no default of its own."""


def unread_settings(settings: OptimizerConfig, read: Set[str]) -> list[str]:
    """As `idle_settings`, of an optimizer that was built in code.

    Args:
        settings: The section `optimizer`.
        read: The attributes that the function looked at, as `noting_reads` found them.
    """
    if read & _READS_ALL:
        return []
    return [
        _clause(f"optimizer.{name}", getattr(settings, name), "build_optimizer")
        for name in _OF_OPTIMIZERS
        if name not in read and getattr(settings, name)
    ]


def noting_reads(settings: OptimizerConfig, read: set[str]) -> OptimizerConfig:
    """The same settings, which note the name of each attribute that is read of them.

    Args:
        settings: The section `optimizer`.
        read: Receives the names.
    """

    class Noting(OptimizerConfig):
        def __getattribute__(self, name: str) -> Any:
            read.add(name)
            return super().__getattribute__(name)

    values = {name: getattr(settings, name) for name in OptimizerConfig.model_fields}
    noting = Noting.model_construct(settings.model_fields_set, **values)
    read.clear()  # what making it has read
    return noting


def _clause(path: str, value: object, part: str) -> str:
    shown = str(value).lower() if isinstance(value, bool) else value
    return f"{path} is {shown}, which has no effect beside Overrides.{part}"
