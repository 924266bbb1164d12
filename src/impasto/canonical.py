"""Converts values to text that is the same in every process, on every system and in every locale.

Identifiers of commands, states and files on disk are made here, never by `repr` or `hash`: the
order of a set differs from process to process (PYTHONHASHSEED) and paths differ by system, so the
same work would get another identifier.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from enum import Enum
from pathlib import PurePath
from typing import Any


def canonical(value: object) -> str:
    """Return plain values, collections of them and dataclasses as one line of ASCII JSON.

    Raises:
        TypeError: The value contains a type without a canonical text.
    """
    return json.dumps(_plain(value), sort_keys=True, ensure_ascii=True, separators=(",", ":"))


def _plain(value: object) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, PurePath):
        return value.as_posix()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"": type(value).__name__, **own}
    if isinstance(value, Mapping):
        return {canonical(key): _plain(item) for key, item in value.items()}
    if isinstance(value, AbstractSet):
        return sorted(map(canonical, value))
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [_plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no canonical text")


def sort_key(path: str, separator: str = os.sep) -> str:
    """Return a sort key for paths that gives the same order on Windows, for reproducible runs."""
    return path.replace(separator, "/")
