"""Reads a command line of sd-scripts: its flags, and those of its `--config_file`."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from impasto import presence
from impasto.config.validation import read_toml
from impasto.errors import ConfigError
from impasto.finite import finite
from impasto.sdscripts.flag import SCRIPTS, Flag, Script
from impasto.sdscripts.flags import flags_of

_TYPES: dict[str, Any] = {"int": int, "float": finite, "text": str, "list": str}
_OFF_IF_EMPTY = {"block_lr", "config_file", "lr_scheduler_type", "optimizer_type", "resume"}
"""Flags whose empty text is as if they were not given (`if args.block_lr` and the like there)."""
_OFF_IF_ZERO = {
    "min_snr_gamma",
    "sample_every_n_epochs",
    "sample_every_n_steps",
    "v_pred_like_loss",
}
"""Flags whose 0 is as if they were not given, there too."""

_LIKENESS = 0.8  # of a key of a file and a flag, from which the key is taken for a slip
_OF_OTHERS = {"ae", "network_module", "noise_offset_type", "t5xxl_max_token_length"}
"""Keys that look like slips and are none: the forms of kohya_ss and other commands write them."""


def parse_flags(
    script: Script, arguments: Sequence[str], tell: Callable[[str], object] = lambda _: None
) -> dict[str, Any]:
    """The flags that a command line gives, with their values; flags of its file come second.

    Args:
        script: The command.
        arguments: What follows it.
        tell: Is given a line for each key of the file that has no effect.

    Raises:
        ConfigError: A flag is unknown, refused, or its value does not fit; or a key of the file
            looks like a flag that is misspelt.
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
        _checked(known[name], found[name])  # before a file is read that it speaks of
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
        if message.startswith("ambiguous option: "):  # beginnings of names are taken, as there
            raise ConfigError(_unknown(self._script, short))
        raise ConfigError(f"{self._script}: {message}.")


def _file_of(name: str) -> Path:
    """The file that `--config_file` names: `.toml` is added as there, unless there is none so."""
    with_ending = Path(f"{name}.toml")
    is_named_whole = name.endswith(".toml") or (
        presence.is_file(Path(name)) and not presence.is_file(with_ending)
    )
    return Path(name) if is_named_whole else with_ending


def _of_file(script: Script, file: Path, tell: Callable[[str], object]) -> dict[str, Any]:
    """The options of a TOML file, its tables flattened as sd-scripts does.

    What is off or empty is not given: forms write all their fields. Keys that the command does not
    know have no effect, as there, unless they are likely to be slips.
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
    """Make sure that an unknown key is not a flag that is misspelt.

    Raises:
        ConfigError: It is like one, and no other program has it.
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
