"""Translates an sd-scripts command line to a settings file, with the flags as comments."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import PureWindowsPath
from typing import Any

import tomli_w
from pydantic.fields import FieldInfo

from impasto.config.kinds import defaults_of, sections_of
from impasto.config.run import RunConfig
from impasto.errors import ConfigError
from impasto.parsing import split_lines
from impasto.sdscripts.flag import FINE_TUNE, SCRIPTS, Script
from impasto.sdscripts.origins import flags_by_setting, settings_decided_by
from impasto.sdscripts.parsing import parse_flags
from impasto.sdscripts.settings import build_settings
from impasto.sdscripts.translate import translate

_KEY = "--wandb_a"
"""The shortest accepted prefix of `--wandb_api_key`: flags may be abbreviated."""


def command_to_toml(tokens: Sequence[str]) -> str:
    """Return TOML for `impasto train`, with a comment that names the flag of each setting.

    Raises:
        ConfigError: The command runs an unknown script, or has a flag that is rejected.
    """
    scripts = [i for i, token in enumerate(tokens) if token.endswith(".py")]
    script = _script(tokens[scripts[0]]) if scripts else FINE_TUNE
    without_effect = list[str]()
    given = tokens[scripts[0] + 1 :] if scripts else tokens
    flags = parse_flags(script, given, without_effect.append)
    resumed = flags.pop("resume", None)
    translation = translate(script, flags)
    build_settings(script, flags, translation.tree)
    lines = ["# The settings of:", _comment(f"  {shlex.join(_without_keys(tokens))}"), "#"]
    launcher = _of_launcher(tokens[: scripts[0]]) if scripts else []
    if launcher:
        lines.append(
            _comment(
                f"{shlex.join(launcher)} belongs to the launcher: put it before -m impasto train "
                f"too."
            )
        )
    lines += [_comment(notice) for notice in (*without_effect, *translation.notices)]
    if resumed is not None:
        lines.append(
            _comment(f"--resume {resumed}: continue a run of Impasto with `impasto resume`.")
        )
    told = _told(translation.tree, settings_decided_by(script, flags))
    return "\n".join([*lines, "", *_commented(script, told, flags)]) + "\n"


def _of_launcher(before: Sequence[str]) -> Sequence[str]:
    """Return the options of `accelerate launch` or torchrun, which come before the script."""
    for number, word in enumerate(before):
        if word in {"launch", "torchrun"} or word.endswith(".launch"):
            return before[number + 1 :]
    options = (number for number, word in enumerate(before) if word.startswith("-"))
    return before[next(options, len(before)) :]


def _without_keys(tokens: Sequence[str]) -> list[str]:
    """Return a command line with the API key of Weights & Biases replaced by "..."."""
    shown, is_key = list[str](), False
    for token in tokens:
        name, equals, _ = token.partition("=")
        names_key = name.startswith(_KEY)
        shown.append("..." if is_key else f"{name}=..." if equals and names_key else token)
        is_key = names_key and not equals
    return shown


def _script(path: str) -> Script:
    """Return the command in a path of any operating system.

    Raises:
        ConfigError: The command is unknown.
    """
    name = PureWindowsPath(path).name
    for script in SCRIPTS:
        if name == script:
            return script
    raise ConfigError(f"{path} is not one of the known commands: {', '.join(SCRIPTS)}.")


def _comment(text: str) -> str:
    """Return a TOML comment line; unprintable characters, such as line ends, are escaped."""
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return f"# {''.join(shown)}"


def _told(tree: dict[str, Any], given: set[str]) -> dict[str, Any]:
    """Return the tree without values that equal Impasto's defaults and were not given."""
    sections = RunConfig.model_fields
    told: dict[str, Any] = {}
    for name, value in tree.items():
        if not isinstance(value, dict):
            told[name] = value
            continue
        usual = _usual(sections[name])
        differing = {
            key: own
            for key, own in value.items()
            if key not in usual or own != usual[key] or f"{name}.{key}" in given
        }
        if differing:
            told[name] = differing
    return told


def _usual(section: FieldInfo) -> dict[str, Any]:
    """Return the defaults of a section, merged over its kinds if it has several."""
    kinds = sections_of(section)
    if kinds:
        return {"kind": next(iter(kinds)), **defaults_of(kinds)}
    fields = getattr(section.annotation, "model_fields", {})
    return {name: field.default for name, field in fields.items()}


def _commented(script: Script, tree: dict[str, Any], flags: Mapping[str, Any]) -> list[str]:
    """Return TOML lines, each with a comment that names its flag, given or by default."""
    origins = flags_by_setting(script, flags)
    table, lines = "", []
    for line in split_lines(tomli_w.dumps(tree).removesuffix("\n")):
        name = None
        if line.startswith("["):
            table = line.strip("[]")
            if "." in table and origins.get(table) in flags:  # as method.block_lrs
                name = origins[table]
        elif " = " in line:
            name = origins.get(f"{table}.{line.partition(' = ')[0]}".removeprefix("."))
        if name is None:
            lines.append(line)
        else:
            lines.append(f"{line}  # --{name}" + ("" if name in flags else ", by default"))
    return lines
