"""The optimizer that flags of sd-scripts ask for, and its arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from impasto.errors import ConfigError
from impasto.sdscripts.values import read_pairs

_OPTIMIZERS = {
    "": "adamw", "adamw": "adamw", "adamw8bit": "adamw8bit", "pagedadamw": "paged_adamw",
    "pagedadamw8bit": "paged_adamw8bit", "pagedadamw32bit": "paged_adamw32bit", "lion": "lion",
    "lion8bit": "lion8bit", "pagedlion8bit": "paged_lion8bit", "sgdnesterov": "sgd_nesterov",
    "sgdnesterov8bit": "sgd_nesterov8bit", "dadaptation": "dadapt_adam",
    "dadaptadampreprint": "dadapt_adam", "dadaptadagrad": "dadapt_adagrad",
    "dadaptadam": "dadapt_adam", "dadaptadan": "dadapt_adan", "dadaptadanip": "dadapt_adan",
    "dadaptlion": "dadapt_lion", "dadaptsgd": "dadapt_sgd", "prodigy": "prodigy",
    "adafactor": "adafactor", "radamschedulefree": "radam_schedule_free",
    "adamwschedulefree": "adamw_schedule_free", "sgdschedulefree": "sgd_schedule_free",
}  # fmt: skip


def set_optimizer(flags: Mapping[str, Any], tree: dict[str, Any]) -> list[str]:
    """Put the optimizer and its arguments into the tree; returns what a person is told.

    Raises:
        ConfigError: Two are asked for, or arguments are written otherwise than `key=value`.
    """
    asked = [
        name
        for name in ("use_8bit_adam", "use_lion_optimizer", "optimizer_type")
        if flags.get(name)
    ]
    if len(asked) > 1:
        raise ConfigError(f"--{asked[0]} and --{asked[1]} contradict each other.")
    short = {"use_8bit_adam": "adamw8bit", "use_lion_optimizer": "lion"}
    wanted = flags.get("optimizer_type", "")
    optimizer = tree["optimizer"]
    optimizer["kind"] = short.get(asked[0]) if asked and asked[0] in short else _OPTIMIZERS.get(
        wanted.lower(), wanted
    )  # fmt: skip
    arguments = read_pairs("optimizer_args", flags)
    notices = _rates_of_adafactor(arguments) if optimizer["kind"] == "adafactor" else []
    for name in ("betas", "eps", "weight_decay"):
        if name in arguments:
            optimizer[name] = arguments.pop(name)
    if arguments:
        optimizer["arguments"] = {  # as a resumed run reads them
            key: list(value) if isinstance(value, tuple) else value
            for key, value in arguments.items()
        }
    return notices


def _rates_of_adafactor(arguments: Mapping[str, Any]) -> list[str]:
    """There it finds its rates itself, and scales them, unless arguments say otherwise.

    Raises:
        ConfigError: It is asked to find its rates itself.
    """
    asked = [name for name in ("relative_step", "warmup_init") if arguments.get(name)]
    if asked:
        raise ConfigError(
            f"--optimizer_args has {asked[0]}=True, with which Adafactor finds its rates itself. "
            f"Here --learning_rate is the rate: take {asked[0]} out, and give a rate that suits."
        )
    notices = []
    if "relative_step" not in arguments:
        notices.append(
            "--optimizer_type: without relative_step=False in --optimizer_args, sd-scripts' "
            "Adafactor finds its rates itself and ignores --learning_rate; here it is the rate."
        )
    if "scale_parameter" not in arguments:
        notices.append(
            "--optimizer_type: without scale_parameter=False in --optimizer_args, sd-scripts' "
            "Adafactor scales rates by the size of the weights; here it does so with True only."
        )
    return notices
