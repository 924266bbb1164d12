"""Translates sd-scripts' flags of the optimizer and its arguments."""

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

_OF_ADAM = {"decouple": "weight_decouple", "use_bias_correction": "bias_correction"}
_NAMES: Mapping[str, Mapping[str, str]] = {
    "prodigy": _OF_ADAM,
    "dadapt_adam": _OF_ADAM,
    "dadapt_adan": {"no_prox": "weight_decouple"},
}
"""Optimizer -> name of an argument in prodigyopt or dadaptation, as in sd-scripts -> name in
pytorch-optimizer."""

_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "dadapt_adagrad": {"eps": 1e-6},
    "dadapt_adan": {"weight_decay": 0.02},
    "dadapt_lion": {"betas": (0.9, 0.99), "weight_decouple": True},
    "dadapt_sgd": {"momentum": 0.0},
}
"""Defaults of dadaptation that are not those of pytorch-optimizer."""

_OTHERS = {
    "dadaptation": "DAdaptAdam, which followed on DAdaptAdamPreprint,",
    "dadaptadampreprint": "DAdaptAdam, which followed on it,",
    "dadaptadan": "pytorch-optimizer's DAdaptAdan, not dadaptation's,",
    "dadaptadanip": "pytorch-optimizer's DAdaptAdan",
}
"""Optimizers that are replaced by another, with different numerical results."""


def set_optimizer(flags: Mapping[str, Any], tree: dict[str, Any]) -> list[str]:
    """Set the optimizer and its arguments in the tree, and return notices for the user.

    Raises:
        ConfigError: Two optimizers are given, an argument is not `key=value`, or an argument would
            have no effect.
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
    kind = optimizer["kind"]
    arguments = _with_names_of_here(kind, read_pairs("optimizer_args", flags))
    notices = _rates_of_adafactor(arguments) if kind == "adafactor" else []
    if wanted.lower() in _OTHERS:
        notices.append(
            f"--optimizer_type={wanted}: {_OTHERS[wanted.lower()]} is used; it finds other rates "
            f"than the one in sd-scripts."
        )
    for name in ("betas", "eps", "weight_decay"):
        if name in arguments:
            optimizer[name] = arguments.pop(name)
    if arguments:
        optimizer["arguments"] = {  # as a resumed run reads them
            key: list(value) if isinstance(value, tuple) else value
            for key, value in arguments.items()
        }
    return notices


def _with_names_of_here(kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments by pytorch-optimizer's names, with the defaults of sd-scripts.

    Raises:
        ConfigError: Prodigy is to add weight decay to the gradient, which is not supported here.
    """
    names = _NAMES.get(kind, {})
    found = dict(_DEFAULTS.get(kind, {})) | {names.get(k, k): v for k, v in given.items()}
    if kind == "prodigy" and found.get("weight_decouple") is False and found.get("weight_decay"):
        raise ConfigError(
            "--optimizer_args has decouple=False, with which Prodigy's weight_decay would have no "
            "effect here. Remove decouple: weight decay is then decoupled, as in AdamW."
        )
    return found


def _rates_of_adafactor(arguments: Mapping[str, Any]) -> list[str]:
    """Return notices about Adafactor's defaults: in sd-scripts it finds and scales its rates.

    Raises:
        ConfigError: The arguments request that it finds its rates itself.
    """
    asked = [name for name in ("relative_step", "warmup_init") if arguments.get(name)]
    if asked:
        raise ConfigError(
            f"--optimizer_args has {asked[0]}=True, with which Adafactor finds its rates itself. "
            f"Here --learning_rate is the rate: remove {asked[0]}, and give a suitable rate."
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
