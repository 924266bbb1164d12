"""Checks of the types of arguments to `impasto.train` and `impasto.resume`."""

from __future__ import annotations

from pathlib import Path
from types import NoneType

from impasto.argument_types import require_kind, require_methods
from impasto.config.run import RunConfig
from impasto.training.builders.overrides import Overrides
from impasto.training.events import SilentEvents

_SETTINGS = 'settings, as impasto.load_run_config("my.toml") reads them'
_EVENTS = "events, such as impasto.Console() or an object of a subclass of impasto.SilentEvents"


def require_arguments_of_train(config: object, events: object, overrides: object) -> None:
    """Make sure that the arguments of `train` have the right types, and are not swapped.

    Raises:
        TypeError: An argument has the wrong type.
    """
    require_kind("train(config)", config, RunConfig, _SETTINGS)
    _require_common("train", events, overrides)


def require_arguments_of_resume(
    path: object, events: object, overrides: object, changed: object
) -> None:
    """Make sure that the arguments of `resume` have the right types, and are not swapped.

    Raises:
        TypeError: An argument has the wrong type.
    """
    require_kind("resume(path)", path, (str, Path), "the path of a run directory")
    require_kind("resume(changed)", changed, (RunConfig, NoneType), _SETTINGS)
    _require_common("resume", events, overrides)


def _require_common(call: str, events: object, overrides: object) -> None:
    if events is not None:
        require_methods(f"{call}(events)", events, SilentEvents, _EVENTS)
    kinds, given = (Overrides, NoneType), "impasto.Overrides(...)"
    require_kind(f"{call}(overrides)", overrides, kinds, given)
