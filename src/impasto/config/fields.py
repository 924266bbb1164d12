"""Converts settings to and from the text fields of a form, one field per setting.

An empty field means that the setting is not set. The syntax of a field depends on the setting
(`value_types.Form`); text that could be misread, such as text that ends in a space, is quoted.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from typing import Any

import tomli_w

from impasto.config.renamed import with_present_names
from impasto.config.tree import Setting, all_sections, all_settings
from impasto.errors import ConfigError
from impasto.parsing import parse_toml, split_lines

NOTHING = {"lines": "[]", "value": "[]", "table": "{}", "sections": "[]"}
"""Form -> the text of a list or table that is set and empty."""

_PATH = re.compile(r"[a-z_0-9]+(?:\.[a-z_0-9]+)*")


def fields_of(tree: Mapping[str, Any]) -> dict[str, str]:
    """Return the field text of each setting in a tree, by path.

    Raises:
        ConfigError: The tree has an unknown setting.
    """
    values, _ = with_present_names(tree)
    known = all_settings()
    found: dict[str, str] = {}
    for name, value in values.items():
        is_section = any(section.name == name for section in all_sections())
        given = value if is_section and isinstance(value, Mapping) else {"": value}
        for key, inner in given.items():
            path = f"{name}.{key}" if key else name
            if path not in known:
                raise ConfigError(f"There is no setting {path}.", {path: "no such setting"})
            found[path] = _written(known[path], inner)
    return found


def tree_of(fields: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the tree of settings in form fields, and error messages by path.

    Fields that belong to no setting are skipped.
    """
    tree: dict[str, Any] = {}
    faults: dict[str, str] = {}
    for path, setting in all_settings().items():
        text = fields.get(path, "")
        if not text.strip():
            continue
        section = tree.setdefault(setting.section, {}) if setting.section else tree
        try:
            section[setting.name] = _read(setting, text)
        except tomllib.TOMLDecodeError as error:
            faults[path] = f"This is not TOML: {error}"
    return tree, faults


def faults_by_field(faults: Mapping[str, str]) -> dict[str, str]:
    """Return error messages by the field to show them at; those that fit no field under "".

    A message about a whole section is assigned to the first of its settings that it mentions.
    """
    found: dict[str, str] = {}
    for path, sentence in faults.items():
        field = _field_of(path, sentence)
        found[field] = f"{found[field]}. {sentence}" if field in found else sentence
    return found


def _field_of(path: str, sentence: str) -> str:
    plain, known = re.sub(r"\[\d+\]", "", path), all_settings()
    names = plain.split(".")
    for length in range(len(names), 0, -1):
        head = ".".join(names[:length])
        if head in known:
            return head
    rest = sentence.removeprefix(f"{path}: ")
    section = names[0] if names[0] else ""
    for mentioned in _PATH.findall(rest):
        for name in (f"{section}.{mentioned}", mentioned) if section else (mentioned,):
            if name in known:
                return name
    own = [s.path for s in known.values() if section and s.section == section]
    required = [name for name in own if known[name].is_required]
    return (required or own or [""])[0]


def written(text: str) -> str:
    """Return text, quoted if it would otherwise be parsed as another TOML value."""
    return _quoted_if_odd(text) if _value(text) == text else toml_value(text)


def _written(setting: Setting, value: Any) -> str:
    """Return a value as users would type it into a form."""
    form = setting.type.form
    if form == "lines" and isinstance(value, (list, tuple)):
        return "\n".join(_quoted_if_odd(str(item)) for item in value) or NOTHING[form]
    if form == "table" and isinstance(value, Mapping):
        return tomli_w.dumps(value).rstrip("\n") or NOTHING[form]
    if form == "sections":
        return tomli_w.dumps({setting.name: value}).rstrip("\n") if value else NOTHING[form]
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return written(value) if form == "value" else _quoted_if_odd(value)
    return str(value) if form in ("choice", "text") else toml_value(value)


def _read(setting: Setting, text: str) -> Any:
    """Return the value of a field's text.

    Raises:
        tomllib.TOMLDecodeError: The field is a table, and its text is not TOML.
    """
    form, stripped = setting.type.form, text.strip()
    if form == "flag":
        return {"true": True, "false": False}.get(stripped, stripped)
    if form == "choice":
        return next((c for c in setting.type.choices if str(c) == stripped), stripped)
    if form == "lines":
        return _lines(text)
    if form == "table":
        return {} if stripped == NOTHING[form] else parse_toml(text)
    if form == "sections":
        if stripped == NOTHING[form]:
            return []
        found = parse_toml(text)
        if [*found] != [setting.name]:
            raise tomllib.TOMLDecodeError(f"expected [[{setting.name}]] and nothing else")
        return found[setting.name]
    return _unquoted(stripped) if form == "text" else _value(stripped)


def _lines(text: str) -> list[str]:
    if text.strip() == NOTHING["lines"]:
        return []
    return [_unquoted(line.strip()) for line in split_lines(text) if line.strip()]


def _value(text: str) -> Any:
    """Parse a value of TOML; text that is not TOML is returned unchanged, as for `--set`."""
    try:
        found = parse_toml(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return found["value"] if [*found] == ["value"] else text


def _unquoted(text: str) -> str:
    found = _value(text) if text.startswith('"') else text
    return found if isinstance(found, str) else text


def _quoted_if_odd(text: str) -> str:
    """Return text unchanged, or quoted if a form would change it or it would be misread."""
    is_odd = (
        not text.strip()
        or text != text.strip()
        or text.startswith('"')
        or text in NOTHING.values()
        or not all(c.isprintable() or c == "\t" for c in text)
    )
    return toml_value(text) if is_odd else text


def toml_value(value: Any) -> str:
    """Return a value as TOML on one line."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(toml_value(item) for item in value)}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(_pair(key, inner) for key, inner in value.items())}}}"
    return tomli_w.dumps({"v": value}).removeprefix("v = ").rstrip("\n")


def _pair(key: str, value: Any) -> str:
    return f"{_key(key)} = {toml_value(value)}"


def _key(key: str) -> str:
    return tomli_w.dumps({key: 0}).rpartition(" = ")[0]
