"""Finds the shard and row of each key of a cache: in a dictionary, or mapped if there are many.

Each shard has an index file with the keys of its rows, and these files are authoritative. If they
hold very many keys, a sorted copy of all keys is stored in one Arrow file (`tables.py`), which is
mapped: ten million keys take no memory of a process, and a start reads no other files except those
of shards written since. A copy that is missing, damaged or outdated only costs time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from impasto.data.columns.arrow_columns import empty_table, number_column, values_of
from impasto.data.columns.tables import TableFolder
from impasto.data.sharding.shard_files import Stamp
from impasto.errors import StorageError
from impasto.parsing import parse_json

KEPT_FROM = 200_000
"""Keys from which a copy is stored; with fewer, the files of the shards are read in a second."""
INDEX_SCHEMA = pa.schema(
    [
        ("high", pa.uint64()),
        ("low", pa.uint64()),
        ("shard", pa.int32()),
        ("row", pa.int32()),
        ("crc32", pa.int64()),
    ]
)
"""Rows in ascending order of `high`; only `crc32` is in the order of shards and their rows."""
SHARDS_KEY = b"shards"
"""Metadata key of the copy under which the facts about each shard are stored, as JSON."""
INDEX_VERSION = (2,)
NO_SUM = -1
_AT_ONCE = 1 << 18

ShardRow = tuple[str, int]
"""A shard's name, and a row of it."""


class ShardIndex:
    """The shards and rows of keys.

    Args:
        folder: The folder that the copy is stored in.
    """

    def __init__(self, folder: Path) -> None:
        self._table = TableFolder(folder, INDEX_SCHEMA, INDEX_VERSION)
        self._recent: dict[str, ShardRow] = {}
        self._sums: dict[str, Sequence[int] | None] = {}
        self._stamps: dict[str, Stamp] = {}
        self._mapped = _Mapped(empty_table(INDEX_SCHEMA), {})

    def open_kept(self, stamps: Mapping[str, Stamp]) -> set[str]:
        """Map the copy, and return the shards that it covers.

        Args:
            stamps: The existing shards. Entries of the copy for missing shards, or for ones with
                another stamp, are ignored.
        """
        kept = self._table.newest()
        if kept is None:
            return set()
        described = _described(parse_json(kept.schema.metadata[SHARDS_KEY]))
        self._mapped = _Mapped(kept, described)
        known = {name for name, own in described.items() if stamps.get(name) == own.stamp}
        for name in described.keys() - known:
            self._mapped.forget(name)
        return known

    def __len__(self) -> int:
        return len(self._recent) + self._mapped.entries

    def find(self, keys: Sequence[str]) -> list[ShardRow | None]:
        """Return the shard and row of each key; None for a key that is in no shard."""
        found = [self._recent.get(key) for key in keys]
        if self._mapped.entries and None in found:
            missing = [n for n, shard_row in enumerate(found) if shard_row is None]
            shard_rows = self._mapped.find([keys[n] for n in missing])
            for n, shard_row in zip(missing, shard_rows, strict=True):
                found[n] = shard_row
        return found

    def rows_of(self, keys: Sequence[str]) -> list[ShardRow]:
        """Return the shards and rows of keys that must exist.

        Raises:
            KeyError: A key is in no shard.
        """
        shard_rows = []
        for key, shard_row in zip(keys, self.find(keys), strict=True):
            if shard_row is None:
                raise KeyError(key)
            shard_rows.append(shard_row)
        return shard_rows

    def shards_of_all(self, keys: np.ndarray) -> set[str] | None:
        """Return the names of the shards that hold the keys; None if a key is in no shard.

        Args:
            keys: [keys, 16] bytes of their hex digits; zeros for no key.
        """
        shards: set[str] = set()
        for start in range(0, len(keys), _AT_ONCE):
            portion = np.ascontiguousarray(keys[start : start + _AT_ONCE])
            halves = portion.view(">u8").astype(np.uint64)
            is_mapped, names = self._mapped.has(halves)
            shards |= names
            missing = portion[halves.any(axis=1) & ~is_mapped]
            for shard_row in self.find([key.tobytes().hex() for key in missing]):
                if shard_row is None:
                    return None
                shards.add(shard_row[0])
        return shards

    def sum_of(self, shard: str, row: int) -> int | None:
        """Return the CRC-32 of a row; None for a shard of a version that wrote none."""
        if shard in self._sums:
            sums = self._sums[shard]
            return None if sums is None else sums[row]
        return self._mapped.sum_of(shard, row)

    def add(
        self, shard: str, keys: Sequence[str], sums: Sequence[int] | None, stamp: Stamp
    ) -> None:
        """Add a shard; its stamp must have been read before its keys and sums."""
        self._stamps[shard] = stamp
        self._recent.update({key: (shard, row) for row, key in enumerate(keys)})
        self._sums[shard] = sums

    def remove(self, shard: str) -> None:
        """Forget all keys of a shard, as when its file is gone."""
        self._sums.pop(shard, None)
        self._stamps.pop(shard, None)
        self._mapped.forget(shard)
        self._recent = {key: own for key, own in self._recent.items() if own[0] != shard}

    @property
    def is_behind(self) -> bool:
        """Whether enough keys were added since the copy was written to rewrite it."""
        return len(self._recent) >= max(KEPT_FROM, self._mapped.entries // 8)

    def keep(self) -> None:
        """Rewrite the copy; a failure is ignored, as it only costs time at the next start."""
        with contextlib.suppress(StorageError):
            self._write()

    def _write(self) -> None:
        by_shard: dict[str, list[tuple[int, str]]] = {}
        for key, (shard, row) in self._recent.items():
            by_shard.setdefault(shard, []).append((row, key))
        columns, described = self._mapped.columns()
        for name, entries in by_shard.items():
            columns[name], described[name] = self._columns_of(name, sorted(entries))
        shards = [
            np.full(len(rows), number, np.int32)
            for number, (_, _, rows, _) in enumerate(columns.values())
        ]
        high, low, rows, sums = map(np.concatenate, zip(*columns.values(), strict=True))
        order = np.argsort(high, kind="stable")
        arrays = [high[order], low[order], np.concatenate(shards)[order], rows[order], sums]
        table = pa.Table.from_arrays(list(map(number_column, arrays)), schema=INDEX_SCHEMA)
        told = {name: [own.entries, own.stamp, own.left_out] for name, own in described.items()}
        kept = self._table.replace_all(table, {SHARDS_KEY: json.dumps(told).encode("utf-8")})
        self._recent, self._sums, self._stamps = {}, {}, {}
        self._mapped = _Mapped(kept, described)

    def _columns_of(
        self, shard: str, entries: list[tuple[int, str]]
    ) -> tuple[_Columns, _Described]:
        """Return the columns of a shard, without rows whose keys are in another shard too."""
        halves = np.array([halves_of(key) for _, key in entries], dtype=np.uint64).reshape(-1, 2)
        rows = np.array([row for row, _ in entries], dtype=np.int32)
        own = self._sums[shard]
        sums = np.full(len(rows), NO_SUM) if own is None else np.array(own, dtype=np.int64)[rows]
        left_out = sorted(set(range(int(rows[-1]))).difference(rows.tolist()))
        described = _Described(len(rows), self._stamps[shard], left_out)
        return (halves[:, 0], halves[:, 1], rows, sums), described


_Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class _Described:
    """The facts about a shard in the copy.

    Attributes:
        entries: How many of its rows are in the copy.
        stamp: The stamp of the shard when it was read.
        left_out: Rows below the last that are not in the copy, in ascending order.
    """

    entries: int
    stamp: Stamp
    left_out: list[int]


def _described(stored: Mapping[str, tuple[int, Stamp, list[int]]]) -> dict[str, _Described]:
    return {name: _Described(*own) for name, own in stored.items()}


class _Mapped:
    """The mapped copy of all keys.

    Args:
        table: Its columns.
        described: The shards in the order of their numbers.
    """

    def __init__(self, table: pa.Table, described: Mapping[str, _Described]) -> None:
        self._high, self._low, self._shards, self._rows, self._sums = (
            values_of(column) for column in table.itercolumns()
        )
        self._names, self._described = list(described), list(described.values())
        self._numbers = {name: number for number, name in enumerate(self._names)}
        self._starts = np.cumsum([0, *(own.entries for own in self._described)])
        self._is_there = np.ones(len(self._names), dtype=np.bool_)
        self.entries = len(self._high)

    def forget(self, shard: str) -> None:
        """Treat a shard as gone."""
        number = self._numbers.get(shard)
        if number is not None and self._is_there[number]:
            self._is_there[number] = False
            self.entries -= int(self._starts[number + 1] - self._starts[number])

    def find(self, keys: Sequence[str]) -> list[ShardRow | None]:
        """Return the shard and row of each key; None for a key that is not in the copy."""
        halves = [halves_of(key) for key in keys]
        highs = np.array([high for high, _ in halves], dtype=np.uint64)
        starts = np.searchsorted(self._high, highs).tolist()
        return [self._at(start, *own) for start, own in zip(starts, halves, strict=True)]

    def has(self, halves: np.ndarray) -> tuple[np.ndarray, set[str]]:
        """Look up keys given as [keys, 2] numbers, each at the first row with its `high` only.

        Returns:
            [keys]: whether each was found, and the names of the shards that hold them.
        """
        if not self.entries:
            return np.zeros(len(halves), dtype=np.bool_), set()
        order = np.argsort(halves[:, 0])  # sorted, so that neighbouring keys are looked up in turn
        high, low = halves[order].T
        indices = np.minimum(np.searchsorted(self._high, high), len(self._high) - 1)
        shards = self._shards[indices]
        same = (self._high[indices] == high) & (self._low[indices] == low) & self._is_there[shards]
        found = np.zeros(len(halves), dtype=np.bool_)
        found[order] = same
        used = np.zeros(len(self._names), dtype=np.bool_)
        used[shards[same]] = True
        return found, {self._names[number] for number in np.flatnonzero(used)}

    def sum_of(self, shard: str, row: int) -> int | None:
        """Return the CRC-32 of a row; None if it has none."""
        number = self._numbers[shard]
        index = row - bisect_left(self._described[number].left_out, row)
        value = int(self._sums[self._starts[number] + index])
        return None if value == NO_SUM else value

    def columns(self) -> tuple[dict[str, _Columns], dict[str, _Described]]:
        """Return the columns and the description of each shard that is not gone, by its name."""
        order = np.argsort(self._shards, kind="stable")
        found, described = {}, {}
        for number in np.flatnonzero(self._is_there).tolist():
            start, end = int(self._starts[number]), int(self._starts[number + 1])
            own = order[start:end]
            columns = (self._high[own], self._low[own], self._rows[own])
            found[self._names[number]] = (*columns, self._sums[start:end])
            described[self._names[number]] = self._described[number]
        return found, described

    def _at(self, index: int, high: int, low: int) -> ShardRow | None:
        while index < len(self._high) and self._high[index] == high:
            number = int(self._shards[index])
            if self._low[index] == low and self._is_there[number]:
                return self._names[number], int(self._rows[index])
            index += 1
        return None


def halves_of(key: str) -> tuple[int, int]:
    """Return a key as two 64-bit numbers: its 32 hex digits, or a hash of any other text."""
    raw = b""
    if len(key) == 2 * _KEY_BYTES:
        with contextlib.suppress(ValueError):
            raw = bytes.fromhex(key)
    if len(raw) != _KEY_BYTES:
        raw = hashlib.blake2b(key.encode("utf-8"), digest_size=_KEY_BYTES).digest()
    return int.from_bytes(raw[:8], "big"), int.from_bytes(raw[8:], "big")


_KEY_BYTES = 16
