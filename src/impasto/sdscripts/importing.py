"""An old command line as the text of a settings file, each line with what it was."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import tomli_w
from pydantic.fields import FieldInfo

from impasto.config.kinds import defaults_of, sections_of
from impasto.config.load import build_run_config
from impasto.config.run import RunConfig
from impasto.errors import ConfigError
from impasto.parsing import split_lines
from impasto.sdscripts.flags import FLAGS
from impasto.sdscripts.origins import BY_RULE, settings_decided_by, settings_of
from impasto.sdscripts.parsing import parse_flags
from impasto.sdscripts.translate import translate

_SCRIPT = "fine_tune.py"


def command_to_toml(words: Sequence[str]) -> str:
    """TOML that `impasto train` takes, with a comment where a flag became it.

    Raises:
        ConfigError: The command is of another script, or has a flag that is refused.
    """
    scripts = [i for i, word in enumerate(words) if word.endswith(".py")]
    if scripts and not words[scripts[0]].endswith(_SCRIPT):
        raise ConfigError(f"{words[scripts[0]]} is not {_SCRIPT}, the one command that is known.")
    flags = parse_flags(words[scripts[0] + 1 :] if scripts else words)
    resumed = flags.pop("resume", None)
    translation = translate(flags)
    build_run_config(translation.tree, source="the command")
    lines = ["# The settings of:", _comment(f"  {shlex.join(words)}"), "#"]
    launcher = [w for w in words[: scripts[0]] if w.startswith("-")] if scripts else []
    if launcher:
        lines.append(
            _comment(
                f"{shlex.join(launcher)} belongs to the launcher: put it before -m impasto train "
                f"too."
            )
        )
    lines += [_comment(notice) for notice in translation.notices]
    if resumed is not None:
        lines.append(
            _comment(f"--resume {resumed}: continue a run of Impasto with `impasto resume`.")
        )
    return "\n".join([*lines, "", *_commented(_told(translation.tree, flags), flags)]) + "\n"


def _comment(text: str) -> str:
    """A line of TOML with words of a command; what would end or break it is shown as an escape."""
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return f"# {''.join(shown)}"


def _told(tree: dict[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """The tree without what is Impasto's default anyway and was not given."""
    sections, given = RunConfig.model_fields, settings_decided_by(flags)
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


def _commented(tree: dict[str, Any], flags: Mapping[str, Any]) -> list[str]:
    """TOML lines, each with the flag that it came from, or whose default it is."""
    origin = {path: name for name in BY_RULE for path in settings_of(name) if "." in path}
    origin |= {flag.to: flag.name for flag in FLAGS.values() if flag.to}
    origin |= {path: name for name in flags for path in settings_of(name)}
    section, lines = "", []
    for line in split_lines(tomli_w.dumps(tree).removesuffix("\n")):
        if line.startswith("["):
            section = line.strip("[]") + "."
        name = origin.get(section + line.partition(" = ")[0]) if " = " in line else None
        if name is None:
            lines.append(line)
        else:
            lines.append(f"{line}  # --{name}" + ("" if name in flags else ", by default"))
    return lines
