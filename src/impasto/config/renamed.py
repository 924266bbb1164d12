"""Renamed settings: files and runs that use a former name are still read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class FormerNameWarning(FutureWarning):
    """A setting was read under a former name."""


SETTINGS = {"training.weights": "training.weight_dtype"}
"""Former path -> present path."""

SECTIONS = {"hypernetwork": "method"}
"""Former section -> the section that has its settings now."""


def present_path(path: str) -> str:
    """Return the present path of a setting from its present or former path."""
    section, dot, rest = path.partition(".")
    return SETTINGS.get(path, f"{SECTIONS.get(section, section)}{dot}{rest}")


def with_present_names(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return settings under their present names, and a note for each former name that was found.

    Raises:
        ValueError: A setting is given under both names.
    """
    tree = {k: dict(v) if isinstance(v, Mapping) else v for k, v in values.items()}
    notes = []
    for section, now in SECTIONS.items():
        if not isinstance(tree.get(section), dict):
            continue
        former = tree.pop(section)
        own = tree.setdefault(now, {})
        if isinstance(own, dict):
            for name, value in former.items():
                _move(own, name, value, f"{section}.{name}", f"{now}.{name}")
            notes.append(f"[{section}] is a part of [{now}] now")
    for before, path in SETTINGS.items():
        section, _, name = before.partition(".")
        own = tree.get(section)
        if isinstance(own, dict) and name in own:
            _move(own, path.partition(".")[2], own.pop(name), before, path)
            notes.append(f"{before} is called {path} now")
    return tree, notes


def _move(own: dict[str, Any], name: str, value: Any, before: str, now: str) -> None:
    if own.setdefault(name, value) != value:
        raise ValueError(f"{before} and {now} are the same setting; use the second")
