"""The JSON file beside a shard, which names the keys of its rows, and shards that are bad."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from impasto.parsing import parse_json, read_text

SHARD_BYTES = 128 << 20
"""A shard is about so large, so that ten million images of 512 x 512 are 5,000 of them."""


NO_FILE = (FileNotFoundError, IsADirectoryError)
"""Errors of reading a file that is gone, which a disk that does not answer never raises."""


@dataclass(frozen=True)
class BadShard:
    """A shard that cannot be used.

    Attributes:
        file: The file that is at fault.
        reason: Why it cannot be used.
        entries: How many entries are lost with it.
        is_unread: Whether the disk did not give it, which says nothing of what is in it.
    """

    file: Path
    reason: str
    entries: int
    is_unread: bool = False


@dataclass(frozen=True)
class StoredIndex:
    """What the JSON file of a shard says."""

    version: int
    keys: list[str]
    sha256: str | None
    sums: list[int] | None


Stamp = list[int]
"""What tells a shard from another of the same name: bytes of its tensors; bytes and time of change
of the file that names its keys. One that is encoded again may have other bits in as many bytes."""


def stamp_of_shard(index: Path) -> Stamp:
    """The stamp of a shard, by the file that names its keys; zeros for a file that is gone."""
    sizes = []
    for file in (index.with_suffix(".safetensors"), index):
        try:
            status = file.stat()
        except OSError:
            sizes += [0, 0]
        else:
            sizes += [status.st_size, status.st_mtime_ns]
    return [sizes[0], *sizes[2:]]


def digest_of(keys: Sequence[str]) -> str:
    """The part of a shard's name that tells its keys and their order."""
    return hashlib.sha256("".join(keys).encode("utf-8")).hexdigest()[:16]


def read_index(file: Path) -> StoredIndex | None:
    """The index of a shard; None if it is damaged, or gone.

    Raises:
        OSError: The disk does not give it, which says nothing of what is in it.
    """
    try:
        stored = parse_json(read_text(file))
        index = StoredIndex(
            stored["format_version"], stored["keys"], stored.get("sha256"), stored.get("crc32")
        )
    except (*NO_FILE, ValueError, KeyError, TypeError, AttributeError):
        return None
    whole = (
        type(index.version) is int
        and isinstance(index.keys, list)
        and all(isinstance(key, str) for key in index.keys)
        and file.stem.endswith(f"-{digest_of(index.keys)}")
        and (index.sha256 is None or isinstance(index.sha256, str))
        and (index.sums is None or _are_sums(index.sums, len(index.keys)))
    )
    return index if whole else None


def _are_sums(sums: Any, count: int) -> bool:
    is_list = isinstance(sums, list) and len(sums) == count
    return is_list and all(type(value) is int for value in sums)


def sum_of_row(columns: Sequence[np.ndarray], row: int) -> int:
    """The CRC-32 of a row of all columns, one after the other."""
    value = 0
    for column in columns:
        value = zlib.crc32(np.ascontiguousarray(column[row]).data, value)
    return value
