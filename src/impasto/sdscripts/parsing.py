"""Parses a command line of sd-scripts: its flags, and those in its `--config_file`."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from impasto import presence
from impasto.config.setting_files import read_toml
from impasto.errors import ConfigError
from impasto.finite import finite
from impasto.sdscripts.flag import SCRIPTS, Flag, Script
from impasto.sdscripts.flags import flags_of

_TYPES: dict[str, Any] = {"int": int, "float": finite, "text": str, "list": str}
_OFF_IF_EMPTY = {"block_lr", "config_file", "lr_scheduler_type", "optimizer_type", "resume"}
"""Flags that count as not given if they are empty, as in sd-scripts (`if args.block_lr`)."""
_OFF_IF_ZERO = {
    "min_snr_gamma",
    "sample_every_n_epochs",
    "sample_every_n_steps",
    "v_pred_like_loss",
}
"""Flags that count as not given if they are 0, as in sd-scripts."""

_LIKENESS = 0.8  # similarity to a flag from which an unknown key of a file is taken for a typo
_OF_OTHERS = {"ae", "network_module", "noise_offset_type", "t5xxl_max_token_length"}
"""Keys that look like typos but are not: kohya_ss and other commands write them."""


def parse_flags(
    script: Script, arguments: Sequence[str], tell: Callable[[str], object] = lambda _: None
) -> dict[str, Any]:
    """Return the given flags with their values; the command line overrides its `--config_file`.

    Args:
        script: The command.
        arguments: Its arguments.
        tell: Called with a line for each key of the file that has no effect.

    Raises:
        ConfigError: A flag is unknown or rejected, its value is invalid, or a key of the file looks
            like a misspelt flag.
    """
    known = flags_of(script)
    parser = _Parser(script)
    for flag in known.values():
        options: dict[str, Any] = {"default": argparse.SUPPRESS}
        if flag.kind == "flag":
            options["action"] = "store_true"
        elif flag.kind == "list":
            options["nargs"] = "*"
        parser.add_argument(f"--{flag.name}", **options)
    found = vars(parser.parse_args(list(arguments)))
    for name in [name for name in found if known[name].refusal and found[name] != ""]:
        _checked(known[name], found[name])  # before the file that it names is read
    file = found.pop("config_file", "")
    if file:
        found = {**_of_file(script, _file_of(file), tell), **found}
    checked = {
        name: _checked(known[name], value)
        for name, value in found.items()
        if value != "" or name not in _OFF_IF_EMPTY
    }
    return {name: v for name, v in checked.items() if v != 0 or name not in _OFF_IF_ZERO}


class _Parser(argparse.ArgumentParser):
    def __init__(self, script: Script) -> None:
        super().__init__(prog=script, add_help=False)
        self._script = script

    def error(self, message: str) -> Any:
        unrecognized = message.partition("arguments: ")[2].split()
        unknown = [
            argument.partition("=")[0] for argument in unrecognized if argument.startswith("--")
        ]
        if unknown:
            raise ConfigError(_unknown(self._script, unknown[0].lstrip("-")))
        short = message.removeprefix("ambiguous option: --").partition(" ")[0].partition("=")[0]
        if message.startswith("ambiguous option: "):  # names may be abbreviated, as in sd-scripts
            raise ConfigError(_unknown(self._script, short))
        raise ConfigError(f"{self._script}: {message}.")


def _file_of(name: str) -> Path:
    """Return the path in `--config_file`; `.toml` is appended unless only the bare file exists."""
    with_ending = Path(f"{name}.toml")
    is_named_whole = name.endswith(".toml") or (
        presence.is_file(Path(name)) and not presence.is_file(with_ending)
    )
    return Path(name) if is_named_whole else with_ending


def _of_file(script: Script, file: Path, tell: Callable[[str], object]) -> dict[str, Any]:
    """Return the options in a TOML file, with its tables flattened as in sd-scripts.

    Values that are false or empty count as not given, since kohya_ss writes all fields. Keys that
    the command does not know have no effect, as in sd-scripts, unless they look like typos.
    """
    known, options = flags_of(script), dict[str, Any]()

    def flatten(table: Mapping[str, Any]) -> None:
        for key, value in table.items():
            if isinstance(value, dict):
                flatten(value)
            elif value is False or value == "":
                continue
            elif key not in known:
                _require_no_slip(script, file, key)
                tell(f"{key} in {file}: {script} has no such flag, so it has no effect.")
            elif value or known[key].kind != "flag":
                options[key] = value

    flatten(read_toml(file))
    return options


def _require_no_slip(script: Script, file: Path, key: str) -> None:
    """Make sure that an unknown key is not a misspelt flag.

    Raises:
        ConfigError: It resembles a flag, and no other program uses it.
    """
    if key in _OF_OTHERS or any(key in flags_of(other) for other in SCRIPTS):
        return
    if difflib.get_close_matches(key, flags_of(script), n=1, cutoff=_LIKENESS):
        raise ConfigError(f"{file}: {_unknown(script, key)}")


def _unknown(script: Script, name: str) -> str:
    others = [s for s in SCRIPTS if name in flags_of(s) and not flags_of(s)[name].refusal]
    near = difflib.get_close_matches(name, flags_of(script), n=1, cutoff=0.5)
    nearest = f" The nearest is --{near[0]}." if near else ""
    if others:
        nearest = f" {others[0]} has it.{nearest}"
    return f"sd-scripts' {script} has no flag --{name}.{nearest}"


def _checked(flag: Flag, value: Any) -> Any:
    """Convert a flag's value to its type.

    Raises:
        ConfigError: The flag is rejected, or the value is invalid.
    """
    if flag.refusal:
        nearest = flag.nearest.get(str(value).rpartition(".")[2])
        instead = f". The nearest to {value} is {nearest}" if nearest else ""
        raise ConfigError(f"--{flag.name} is not supported: {flag.refusal}{instead}.")
    if flag.kind == "flag":
        return bool(value)
    if flag.kind == "list":
        return [str(item) for item in (value if isinstance(value, list) else [value])]
    try:
        typed = _TYPES[flag.kind](value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"--{flag.name} is {value!r}; expected a number.") from error
    if flag.choices and str(typed) not in flag.choices:
        raise ConfigError(f"--{flag.name} is {value!r}; choose one of {', '.join(flag.choices)}.")
    return typed
