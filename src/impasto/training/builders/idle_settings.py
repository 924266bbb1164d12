"""Finds settings that have no effect because a part given in code replaces them."""

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
"""Name of a part -> the settings that are not read if it is given in code."""

_OF_OPTIMIZERS = ("betas", "eps", "weight_decay", "arguments")
"""Settings that only the function which builds the optimizer may read."""

_READS_ALL = {"given", "model_dump", "model_dump_json", "model_copy", "__dict__"}


def idle_settings(config: RunConfig, given: Iterable[str]) -> list[str]:
    """Return the settings that are not at their default but are replaced by parts given in code.

    Args:
        config: The settings of the run.
        given: The names of the parts given in code.

    Returns:
        A clause per such setting: its path, its value, and the part that replaces it.
    """
    found = []
    for part in given:
        for path in _REPLACED.get(part, ()):
            section, name = path.split(".")
            settings = getattr(config, section)
            field = type(settings).model_fields.get(name)
            if field is None:  # a field of another kind of loss
                continue
            value = getattr(settings, name)
            if value != field.get_default(call_default_factory=True) and value != _USUAL.get(path):
                found.append(_clause(path, value, part))
    return found


_USUAL = {"loss.kind": "l2"}
"""Usual values of fields that have no default."""


def unread_settings(settings: OptimizerConfig, read: Set[str]) -> list[str]:
    """Return the optimizer settings that are set but were not read by an optimizer built in code.

    Args:
        settings: The section `optimizer`.
        read: The attributes that the function read, as recorded by `noting_reads`.

    Returns:
        A clause per such setting, as `idle_settings` returns.
    """
    if read & _READS_ALL:
        return []
    return [
        _clause(f"optimizer.{name}", getattr(settings, name), "build_optimizer")
        for name in _OF_OPTIMIZERS
        if name not in read and getattr(settings, name)
    ]


def noting_reads(settings: OptimizerConfig, read: set[str]) -> OptimizerConfig:
    """Return a copy of the settings that records the name of each attribute that is read.

    Args:
        settings: The section `optimizer`.
        read: The set that receives the names.
    """

    class Noting(OptimizerConfig):
        def __getattribute__(self, name: str) -> Any:
            read.add(name)
            return super().__getattribute__(name)

    values = {name: getattr(settings, name) for name in OptimizerConfig.model_fields}
    noting = Noting.model_construct(settings.model_fields_set, **values)
    read.clear()  # names recorded by the construction
    return noting


def _clause(path: str, value: object, part: str) -> str:
    shown = str(value).lower() if isinstance(value, bool) else value
    return f"{path} is {shown}, which has no effect with Overrides.{part}"
