"""Translates sd-scripts' flags of the learning rate schedule.

Which flags apply to which `--lr_scheduler` is as in sd-scripts' `get_scheduler_fix`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from impasto.errors import ConfigError
from impasto.optimizer_table import row_of
from impasto.sdscripts.values import read_number, read_pairs, read_steps

NEAREST_SCHEDULES = {
    "CosineAnnealingLR": "--lr_scheduler cosine",
    "CosineAnnealingWarmRestarts": "--lr_scheduler cosine_with_restarts",
    "OneCycleLR": "--lr_scheduler cosine with --lr_warmup_steps",
    "LinearLR": "--lr_scheduler linear",
    "PolynomialLR": "--lr_scheduler polynomial",
    "ConstantLR": "--lr_scheduler piecewise_constant",
    "StepLR": "--lr_scheduler piecewise_constant",
    "MultiStepLR": "--lr_scheduler piecewise_constant",
    "ExponentialLR": "--lr_scheduler piecewise_constant",
    "LambdaLR": "--lr_scheduler piecewise_constant",
    "RexLR": "--lr_scheduler rex",
    "CosineAnnealingWarmupRestarts": "--lr_scheduler cosine_with_restarts",
}
"""Scheduler class -> the flags for the most similar schedule."""

_KINDS = {"constant_with_warmup": "constant"}
_USERS = {
    "cycles": ("lr_scheduler_num_cycles",
               {"cosine_with_restarts", "cosine_with_min_lr", "warmup_stable_decay"}),
    "power": ("lr_scheduler_power", {"polynomial"}),
    "timescale": ("lr_scheduler_timescale", {"inverse_sqrt"}),
    "min_lr_ratio": ("lr_scheduler_min_lr_ratio", {"cosine_with_min_lr", "warmup_stable_decay"}),
}  # fmt: skip
"""Key of `[schedule]` -> the flag that sets it, and the schedulers that have it."""

_ARGUMENTS = {
    "piecewise_constant": ("step_rules",),
    "cosine_with_min_lr": ("min_lr", "min_lr_rate"),
}
"""Scheduler -> the arguments that it accepts in `--lr_scheduler_args`."""

_FLAG_OF = {
    "num_warmup_steps": "lr_warmup_steps",
    "num_decay_steps": "lr_decay_steps",
    "num_cycles": "lr_scheduler_num_cycles",
    "power": "lr_scheduler_power",
    "timescale": "lr_scheduler_timescale",
    "min_lr_ratio": "lr_scheduler_min_lr_ratio",
}
"""Other scheduler arguments in sd-scripts -> the flag to use instead."""

_UNUSED: dict[str, Any] = {
    "lr_scheduler": "constant",
    "lr_scheduler_args": [],
    "lr_warmup_steps": 0,
    "lr_decay_steps": 0,
    **{name: None for name, _ in _USERS.values()},
}
"""Flags without effect for optimizers that average weights -> the value that needs no notice."""


def set_schedule(flags: Mapping[str, Any], tree: dict[str, Any]) -> list[str]:
    """Set the schedule in the tree, which already has the optimizer; return notices for the user.

    Raises:
        ConfigError: A flag or an argument does not fit `--lr_scheduler`, or is malformed.
    """
    optimizer, schedule = tree["optimizer"], tree.setdefault("schedule", {})
    if row_of(optimizer["kind"]).averages_weights:
        schedule |= {"kind": "constant", "warmup_steps": 0}
        return _without_schedule(flags, optimizer["kind"])
    asked = flags.get("lr_scheduler", "constant")
    kind, _, rate = asked.partition(":")
    notices = []
    if kind == "adafactor":
        notices.append("--lr_scheduler adafactor: the rate is constant at --learning_rate.")
        kind = "constant"
        if rate:
            optimizer["lr"] = read_number("lr_scheduler", asked, rate)
    if kind == "warmup_stable_decay":
        kind = _with_decay(flags, schedule, notices)
    schedule["kind"] = _KINDS.get(kind, kind)
    schedule["warmup_steps"] = _warmup(kind, flags, notices)
    for key, (name, kinds) in _USERS.items():
        if flags.get(name) is not None and kind in kinds:
            schedule[key] = flags[name]
        elif flags.get(name) is not None:
            notices.append(f"--{name}: it belongs to another --lr_scheduler than {kind}.")
    schedule |= _of_arguments(kind, read_pairs("lr_scheduler_args", flags), flags, optimizer["lr"])
    return notices


def _warmup(kind: str, flags: Mapping[str, Any], notices: list[str]) -> Any:
    """Return the warm-up steps, or their fraction, if the scheduler has a warm-up in sd-scripts.

    Raises:
        ConfigError: The scheduler is `constant`, with which sd-scripts fails too.
    """
    steps = read_steps("lr_warmup_steps", flags)
    if kind == "constant" and steps:
        raise ConfigError(
            "--lr_warmup_steps does not work with --lr_scheduler constant: choose "
            "constant_with_warmup, or remove it."
        )
    if kind == "piecewise_constant" and steps:
        notices.append(
            "--lr_warmup_steps: it has no effect on --lr_scheduler piecewise_constant, as in "
            "sd-scripts. To warm up, start step_rules with a small factor."
        )
        return 0
    return steps


def _with_decay(flags: Mapping[str, Any], schedule: dict[str, Any], notices: list[str]) -> str:
    """Return the kind of schedule for warmup_stable_decay, and set its decay steps."""
    decay = read_steps("lr_decay_steps", flags)
    if decay in (0, "0%"):
        notices.append(
            "--lr_scheduler warmup_stable_decay: without --lr_decay_steps it never decays, so "
            "constant_with_warmup is used."
        )
        return "constant_with_warmup"
    schedule["decay_steps"] = decay
    return "warmup_stable_decay"


def _without_schedule(flags: Mapping[str, Any], optimizer: str) -> list[str]:
    """Return a notice for each given flag that has no effect with a schedule-free optimizer."""
    given = [
        name
        for name, usual in _UNUSED.items()
        if flags.get(name) is not None and str(flags[name]) != str(usual)
    ]
    return [
        f"--{name}: it has no effect, as in sd-scripts: {optimizer} averages weights instead of "
        f"using a schedule, and the rate is constant."
        for name in given
    ]


def _of_arguments(
    kind: str, arguments: Mapping[str, Any], flags: Mapping[str, Any], lr: float
) -> dict[str, Any]:
    """Return the keys of `[schedule]` for `--lr_scheduler_args`.

    Raises:
        ConfigError: The scheduler has no such argument, or the minimum rate is given twice.
    """
    taken = _ARGUMENTS.get(kind, ())
    for key in arguments:
        if key not in taken:
            others = f"it accepts {' or '.join(taken)}" if taken else "remove it"
            instead = f"give --{_FLAG_OF[key]}" if key in _FLAG_OF else others
            raise ConfigError(
                f"--lr_scheduler_args has {key}, which --lr_scheduler {kind} does not accept here: "
                f"{instead}."
            )
    if kind == "piecewise_constant":
        return {"rules": str(arguments.get("step_rules", ""))}
    if not arguments:
        return {}
    if len(arguments) > 1 or flags.get("lr_scheduler_min_lr_ratio") is not None:
        raise ConfigError(
            "The minimum learning rate is given twice: give only one of min_lr and min_lr_rate in "
            "--lr_scheduler_args, and --lr_scheduler_min_lr_ratio."
        )
    ((key, value),) = arguments.items()
    least = read_number("lr_scheduler_args", f"{key}={value}", str(value))
    if key == "min_lr":
        least = least / lr if lr > 0 else 0.0  # rejected when the settings are validated
    return {"min_lr_ratio": least}
