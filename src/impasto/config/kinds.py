"""Sections whose settings depend on their `kind`: each kind has the settings that affect it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_args

from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from impasto.config.base import Section

Kinds = Mapping[str, type[Section]]
"""Kind -> the section with its settings."""


def of_its_kind(kinds: Kinds, usual: str, sentence: Callable[[str, str], str]) -> BeforeValidator:
    """Return a validator that reads a section by its kind, even with the settings of other kinds.

    A setting of another kind is dropped if it is at its default, as in files that runs of earlier
    versions wrote, and refused otherwise: it would have no effect.

    Args:
        kinds: The kinds and their sections.
        usual: The default kind.
        sentence: Returns the error message for a setting and the kind on which it has no effect.
    """
    former = defaults_of(kinds)

    def read(values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        kind = values.get("kind", usual)
        if not isinstance(kind, str) or kind not in kinds:
            return values  # the union names the kinds
        kept = {"kind": kind}
        for name, value in values.items():
            if name in kinds[kind].model_fields or name not in former:
                kept[name] = value
            elif not _is_same(value, former[name]):
                raise ValueError(sentence(name, kind))
        return kept

    return BeforeValidator(read)


def defaults_of(kinds: Kinds) -> dict[str, Any]:
    """Return the defaults of all settings of all kinds, except for `kind` itself."""
    return {
        name: field.get_default(call_default_factory=True)
        for section in dict.fromkeys(kinds.values())
        for name, field in section.model_fields.items()
        if name != "kind"
    }


def sections_of(field: FieldInfo) -> dict[str, type[Section]]:
    """Return kind -> section for a field whose section depends on its kind, else an empty dict."""
    if field.discriminator != "kind":
        return {}
    return {
        kind: section
        for section in get_args(field.annotation)
        for kind in get_args(section.model_fields["kind"].annotation)
    }


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return list(one) == list(other)
    return bool(one == other)
