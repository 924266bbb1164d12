"""The index of a shard, a JSON file with the keys of its rows; and faulty shards."""

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
"""About the size of a shard, so that ten million images of 512 x 512 make 5,000 shards."""


NO_FILE = (FileNotFoundError, IsADirectoryError)
"""Errors of reading a file that is gone; a disk that does not respond never raises these."""


@dataclass(frozen=True)
class BadShard:
    """A shard that cannot be used.

    Attributes:
        file: The faulty file.
        reason: Why it cannot be used.
        entries: How many entries are lost with it.
        is_unread: Whether the disk failed to read it, so that its content may still be intact.
    """

    file: Path
    reason: str
    entries: int
    is_unread: bool = False


@dataclass(frozen=True)
class StoredIndex:
    """The content of a shard's JSON file."""

    version: int
    keys: list[str]
    sha256: str | None
    sums: list[int] | None


Stamp = list[int]
"""Distinguishes shards with the same name: bytes of its tensors; bytes and modification time of its
index. A shard that is encoded again may have other values in as many bytes."""


def stamp_of_shard(index: Path) -> Stamp:
    """Return the stamp of a shard from its index file; zeros for a file that is gone."""
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
    """Return the part of a shard's name that depends on its keys and their order."""
    return hashlib.sha256("".join(keys).encode("utf-8")).hexdigest()[:16]


def read_index(file: Path) -> StoredIndex | None:
    """Read the index of a shard; None if it is damaged or gone.

    Raises:
        OSError: The disk failed to read it; its content may still be intact.
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
    """Return the CRC-32 of a row, over all columns one after the other."""
    value = 0
    for column in columns:
        value = zlib.crc32(np.ascontiguousarray(column[row]).data, value)
    return value
