"""An old command line as the text of a settings file, each line with what it was."""

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
"""How `--wandb_api_key` may begin: the beginning of a flag is taken for it."""


def command_to_toml(tokens: Sequence[str]) -> str:
    """TOML that `impasto train` takes, with a comment where a flag became it.

    Raises:
        ConfigError: The command is of another script, or has a flag that is refused.
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
    """The options of `accelerate launch` and the like, among what is before the script."""
    for number, word in enumerate(before):
        if word in {"launch", "torchrun"} or word.endswith(".launch"):
            return before[number + 1 :]
    options = (number for number, word in enumerate(before) if word.startswith("-"))
    return before[next(options, len(before)) :]


def _without_keys(tokens: Sequence[str]) -> list[str]:
    """A command line as it may be shown: without the key of Weights & Biases."""
    shown, is_key = list[str](), False
    for token in tokens:
        name, equals, _ = token.partition("=")
        names_key = name.startswith(_KEY)
        shown.append("..." if is_key else f"{name}=..." if equals and names_key else token)
        is_key = names_key and not equals
    return shown


def _script(path: str) -> Script:
    """The command that a path names, with the folders of any system.

    Raises:
        ConfigError: It is none that is known.
    """
    name = PureWindowsPath(path).name
    for script in SCRIPTS:
        if name == script:
            return script
    raise ConfigError(f"{path} is none of the commands that are known: {', '.join(SCRIPTS)}.")


def _comment(text: str) -> str:
    """A line of TOML with words of a command; what would end or break it is shown as an escape."""
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return f"# {''.join(shown)}"


def _told(tree: dict[str, Any], given: set[str]) -> dict[str, Any]:
    """The tree without what is Impasto's default anyway and was not given."""
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
    """The defaults of a section, of all its kinds if it has several."""
    kinds = sections_of(section)
    if kinds:
        return {"kind": next(iter(kinds)), **defaults_of(kinds)}
    fields = getattr(section.annotation, "model_fields", {})
    return {name: field.default for name, field in fields.items()}


def _commented(script: Script, tree: dict[str, Any], flags: Mapping[str, Any]) -> list[str]:
    """TOML lines, each with the flag that it came from, or whose default it is."""
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
