"""Reads a command line of sd-scripts: its flags, and those of its `--config_file`."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from impasto.config.validation import read_toml
from impasto.errors import ConfigError
from impasto.finite import finite
from impasto.sdscripts.flags import SCRIPTS, Flag, Script, flags_of

_TYPES: dict[str, Any] = {"int": int, "float": finite, "text": str, "list": str}


def parse_flags(script: Script, arguments: Sequence[str]) -> dict[str, Any]:
    """The flags that a command line gives, with their values; flags of its file come second.

    Args:
        script: The command.
        arguments: What follows it.

    Raises:
        ConfigError: A flag is unknown, refused, or its value does not fit.
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
    if "config_file" in found:
        found = {**_of_file(script, Path(found.pop("config_file"))), **found}
    return {name: _checked(known[name], value) for name, value in found.items()}


class _Parser(argparse.ArgumentParser):
    def __init__(self, script: Script) -> None:
        super().__init__(prog=script, add_help=False, allow_abbrev=False)
        self._script = script

    def error(self, message: str) -> Any:
        words = message.partition("arguments: ")[2].split()
        unknown = [word.partition("=")[0] for word in words if word.startswith("--")]
        if unknown:
            raise ConfigError(_unknown(self._script, unknown[0].lstrip("-")))
        raise ConfigError(f"{self._script}: {message}.")


def _of_file(script: Script, file: Path) -> dict[str, Any]:
    """The options of a TOML file, its tables flattened as sd-scripts does."""
    if not file.suffix:
        file = file.with_suffix(".toml")
    options: dict[str, Any] = {}

    def flatten(table: Mapping[str, Any]) -> None:
        for key, value in table.items():
            if isinstance(value, dict):
                flatten(value)
            elif key not in flags_of(script):
                raise ConfigError(f"{file}: {_unknown(script, key)}")
            elif value is not False:
                options[key] = value

    flatten(read_toml(file))
    return options


def _unknown(script: Script, name: str) -> str:
    others = [s for s in SCRIPTS if name in flags_of(s) and not flags_of(s)[name].refusal]
    near = difflib.get_close_matches(name, flags_of(script), n=1, cutoff=0.5)
    nearest = f" The nearest is --{near[0]}." if near else ""
    if others:
        nearest = f" {others[0]} has it.{nearest}"
    return f"sd-scripts' {script} has no flag --{name}.{nearest}"


def _checked(flag: Flag, value: Any) -> Any:
    """The value in its type; a refused flag ends here."""
    if flag.refusal:
        nearest = flag.nearest.get(str(value).rpartition(".")[2])
        instead = f". The nearest to {value} is {nearest}" if nearest else ""
        raise ConfigError(f"--{flag.name} is not taken: {flag.refusal}{instead}.")
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
