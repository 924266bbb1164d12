"""Lists the sections and settings of the settings tree, with the type and documentation of each.

The docs, `impasto settings` and the studio's form are generated from this list.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from impasto.config.dataset import DatasetConfig, SubsetConfig
from impasto.config.field_docs import docs_of
from impasto.config.kinds import sections_of
from impasto.config.renamed import SETTINGS
from impasto.config.run import RunConfig
from impasto.config.value_types import ValueType, section_in, type_of

TOP = "(top level)"
"""The heading for settings outside any section."""

SUBSETS = "dataset.datasets.subsets"
"""The path of dataset subsets in the paths of settings."""

_LONGEST_SENTENCE = 240


@dataclass(frozen=True)
class Setting:
    """One setting of the tree, as the docs, `impasto settings` and forms show it.

    Attributes:
        path: `section.name`, or the name alone at the top level.
        docs: Its documentation.
        type: The values that it accepts.
        is_required: Whether it must be set.
        default: The value that holds if it is not set.
        kinds: The kinds of its section that have it; empty if the section has no kinds.
    """

    path: str
    docs: str
    type: ValueType
    is_required: bool
    default: Any
    kinds: tuple[str, ...] = ()

    @property
    def section(self) -> str:
        """The name of the section; empty at the top level."""
        return self.path.rpartition(".")[0]

    @property
    def name(self) -> str:
        """The name of the setting without its section."""
        return self.path.rpartition(".")[2]

    @property
    def first_sentence(self) -> str:
        """The first sentence of `docs`."""
        return first_sentence(self.docs)

    @property
    def default_text(self) -> str:
        """The default as users read it."""
        return "required" if self.is_required else default_text(self.default)


@dataclass(frozen=True)
class SettingSection:
    """A section with its settings.

    Attributes:
        name: The name, as in `[name]`; empty for the top level.
        docs: Its documentation.
        settings: Its settings of all kinds, each once.
        kinds: Its kinds; empty if it has none.
    """

    name: str
    docs: str
    settings: tuple[Setting, ...]
    kinds: tuple[str, ...] = ()


@functools.cache
def all_sections() -> tuple[SettingSection, ...]:
    """Return all sections in the order of a settings file, the top level first."""
    top = _plain_section("", RunConfig)
    found = [SettingSection("", top.docs, tuple(s for s in top.settings if not is_table(s.name)))]
    found += (_section_of(name) for name in RunConfig.model_fields if is_table(name))
    return tuple(found)


@functools.cache
def all_settings() -> dict[str, Setting]:
    """Return every setting by its path."""
    return {setting.path: setting for section in all_sections() for setting in section.settings}


@functools.cache
def subset_settings() -> dict[str, Setting]:
    """Return the settings that only subsets of a dataset have, by name."""
    own = [key for key in own_first(SubsetConfig) if key not in DatasetConfig.model_fields]
    fields = SubsetConfig.model_fields
    return {
        key: _setting(f"{SUBSETS}.{key}", fields[key], docs_of(SubsetConfig, key)) for key in own
    }


def is_table(name: str) -> bool:
    """Return whether a top-level name is that of a section."""
    field = RunConfig.model_fields[name]
    return bool(sections_of(field)) or is_section(field.annotation)


def nearest(path: str, names: Iterable[str]) -> str | None:
    """Return the name most similar to a path, as a whole or in its last part; None if none is."""
    known = list(names)
    close = difflib.get_close_matches(path, known, n=1)
    if close:
        return close[0]
    by_name = {name.rpartition(".")[2]: name for name in reversed(known)}
    last = difflib.get_close_matches(path.rpartition(".")[2], by_name, n=1)
    return by_name[last[0]] if last else None


def former_name_of(path: str) -> str:
    """Return the former name of a setting; empty if it had none."""
    return next((before for before, now in SETTINGS.items() if now == path), "")


def own_first(section: type[BaseModel]) -> list[str]:
    """Return the fields of a section, its own before inherited ones."""
    return list(
        dict.fromkeys(
            name
            for kind in section.__mro__
            for name in vars(kind).get("__annotations__", {})
            if name in section.model_fields
        )
    )


def is_section(annotation: object) -> bool:
    """Return whether a field's annotation is a section and nothing else."""
    return isinstance(annotation, type) and section_in(annotation) is annotation


def default_of(field: FieldInfo) -> Any:
    """Return the default value of a field."""
    return field.get_default(call_default_factory=True)


def default_text(value: object) -> str:
    """Return a default as users read it."""
    if value is None:
        return "off"
    if isinstance(value, bool):
        return str(value).lower()
    return "empty" if value in ("", (), {}, []) else str(value)


def first_sentence(docs: str) -> str:
    """Return the first sentence of a text on one line, shortened if it is long."""
    head, found, _ = docs.partition(". ")
    sentence = f"{head}." if found else docs
    fits = len(sentence) <= _LONGEST_SENTENCE
    return sentence if fits else f"{sentence[:_LONGEST_SENTENCE].rpartition(' ')[0]} ..."


def _section_of(name: str) -> SettingSection:
    kinds = sections_of(RunConfig.model_fields[name])
    if not kinds:
        section = section_in(RunConfig.model_fields[name].annotation)
        assert section is not None, name  # noqa: S101
        return _plain_section(name, section)
    found: dict[str, Setting] = {}
    for kind_section in dict.fromkeys(kinds.values()):
        own = tuple(kind for kind, section in kinds.items() if section is kind_section)
        for setting in _plain_section(name, kind_section).settings:
            before = found.get(setting.path)
            found[setting.path] = _joined(setting, before, own)
    docs = " ".join(_docs_of_kinds(kinds))
    return SettingSection(name, docs, tuple(found.values()), tuple(kinds))


def _docs_of_kinds(kinds: Mapping[str, type[BaseModel]]) -> Iterator[str]:
    for kind_section in dict.fromkeys(kinds.values()):
        names = ", ".join(kind for kind, section in kinds.items() if section is kind_section)
        yield f"{names}: {_docs(kind_section)}"


def _joined(setting: Setting, before: Setting | None, own: tuple[str, ...]) -> Setting:
    """Merge a setting of a further kind; for `kind` itself, the texts of all kinds are joined."""
    if before is None:
        return _with(setting, own, setting.docs, setting.type)
    if setting.name != "kind":
        return _with(before, (*before.kinds, *own), before.docs, before.type)
    choices = (*before.type.choices, *setting.type.choices)
    joined = ValueType(f"one of {', '.join(map(str, choices))}", "choice", choices)
    docs = f"{_naming(before.docs, before.kinds)} {_naming(setting.docs, own)}"
    return _with(before, (*before.kinds, *own), docs, joined)


def _naming(docs: str, kinds: Sequence[str]) -> str:
    """Return documentation that starts with the names of its kinds."""
    return docs if docs.startswith("`") else f"{', '.join(f'`{kind}`' for kind in kinds)}: {docs}"


def _with(setting: Setting, kinds: tuple[str, ...], docs: str, value: ValueType) -> Setting:
    return Setting(setting.path, docs, value, setting.is_required, setting.default, kinds)


def _plain_section(name: str, section: type[BaseModel]) -> SettingSection:
    settings = (
        _setting(f"{name}.{key}" if name else key, section.model_fields[key], docs_of(section, key))
        for key in own_first(section)
    )
    return SettingSection(name, _docs(section), tuple(settings))


def _setting(path: str, field: FieldInfo, docs: str) -> Setting:
    default = None if field.is_required() else default_of(field)
    return Setting(path, docs, type_of(field), field.is_required(), default)


def _docs(section: type[BaseModel]) -> str:
    return (section.__doc__ or "").strip().splitlines()[0]
