"""Validates the settings of a run that are translated from an sd-scripts command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from impasto.config.load import build_run_config
from impasto.config.run import RunConfig
from impasto.errors import ConfigError, ModelError, OtherFamilyError
from impasto.sdscripts.flag import FINE_TUNE, SDXL_TRAIN, TRAIN_DB, Script
from impasto.sdscripts.origins import told_in_flags
from impasto.sdscripts.sdxl_rules import require_fixed_captions, require_steps_of_buckets

_OF_SD: tuple[Script, ...] = (FINE_TUNE, TRAIN_DB)
_FAMILIES: dict[str, tuple[tuple[Script, ...], str]] = {
    "sd1": (_OF_SD, "SD 1.x"),
    "sd2-base": (_OF_SD, "SD 2.x"),
    "sd2-v": (_OF_SD, "SD 2.x"),
    "sdxl": ((SDXL_TRAIN,), "SDXL"),
    "sdxl-v": ((SDXL_TRAIN,), "SDXL"),
}
"""`model.family` -> the commands that train it, and its common name."""


def build_settings(
    script: Script, flags: Mapping[str, Any], tree: Mapping[str, Any], *, begun: bool = False
) -> RunConfig:
    """Validate the tree of settings translated from the flags, and return the run's settings.

    Args:
        script: The command.
        flags: Its flags.
        tree: The settings.
        begun: Whether they are those of a run that was started before, changed by the flags.

    Raises:
        ConfigError: As for `build_run_config`, with the names of flags; or a flag does not fit the
            dataset.
    """
    try:
        config = build_run_config(tree, source=script, begun=begun)
    except ConfigError as error:
        raise told_in_flags(script, flags, error) from error
    require_fixed_captions(flags, config)
    if SDXL_TRAIN in scripts_of(config.model.family):
        require_steps_of_buckets(flags, config)
    return config


def scripts_of(family: str | None) -> tuple[Script, ...]:
    """Return the commands that train a family, the usual one first; empty if it is unknown."""
    return _FAMILIES[family][0] if family in _FAMILIES else ()


def in_terms_of(script: Script, error: OtherFamilyError) -> ModelError:
    """Return an error that says which command or flag to use for a model of another family."""
    key = error.families[0]
    others, name = _FAMILIES.get(key, ((), key))
    if not others:
        return ModelError(
            f"{error.source} is a model of {name}, which none of these sd-scripts commands "
            f"trains. Train it with impasto train."
        )
    if script not in others:
        return ModelError(
            f"{error.source} is a model of {name}, which {script} does not train. Run "
            f"{others[0]} with these flags instead."
        )
    advice = "Add --v2" if name == "SD 2.x" else "Remove --v2"
    return ModelError(f"{error.source} is a model of {name}. {advice}.")
