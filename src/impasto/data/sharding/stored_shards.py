"""Shards in a folder of an object store, with copies on this machine.

Threads fetch whole shards, in the order in which rows are requested, as far as copies fit. Rows of
a shard that would have to wait for many others, or that does not fit, are read one by one, each by
its range of bytes, so training starts in seconds and continues with any amount of room.

A shard is written on this machine and uploaded whole, tensors first. Its name contains a hash of
its tensors, so two machines that encode the same images never mix their files.
"""

from __future__ import annotations

import contextlib
import errno
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from impasto import files
from impasto.data.sharding.shard_columns import HEADER_BYTES, StoredColumn, columns_of
from impasto.data.sharding.shard_fetching import ShardFetcher
from impasto.data.sharding.shard_files import StoredIndex, read_index
from impasto.data.sharding.shard_index import ShardRow
from impasto.data.sharding.shard_store import (
    Arrays,
    Describe,
    mapped,
    tensors_of,
    verified,
)
from impasto.remote_paths import machine_folder, shown
from impasto.storage import objects
from impasto.storage.copies import COUNTED, SpareRoom, fetch_to, limit_bytes, scratch
from impasto.storage.objects import Stored
from impasto.storage_errors import read_reported, reported

_INDEX = re.compile(r"([0-9a-f]{2}/)?shard-[^/]+\.json")
_AT_ONCE = 64
_NOTED_EVERY_S = 300.0
_NOTHING = Stored(0, 0)


class StoredShardFiles:
    """Shards in a folder of an object store.

    Args:
        folder: The folder of the shards.
        columns: The names of the arrays in each shard.
        note: Receives a message, once, if copies do not fit.

    Raises:
        ConfigError: The environment variable for the limit of copies is not a number.
    """

    def __init__(self, folder: Path, columns: tuple[str, ...], note: Callable[[str], None]) -> None:
        limit_bytes()
        self._folder, self._columns = folder, columns
        self.here = machine_folder(folder)
        self._listed: dict[Path, Stored] = {}
        self._written: dict[Path, Stored] = {}
        self._headers: dict[str, tuple[StoredColumn, ...]] = {}
        self._expected: set[str] = set()
        self._noted = time.monotonic()
        self._room = SpareRoom()
        self._fetcher = ShardFetcher(self._fetch_copy, note, shown(folder))

    def indices(self) -> list[Path]:
        """List the store, and return the index files, which hold the keys, of all shards.

        Raises:
            StorageError: The store cannot be used.
        """
        found = objects.find(self._folder).objects
        there = {self._folder / key: stored for key, stored in found.items()}
        self._listed = self._written | there  # a listing may be slightly outdated
        return sorted(self._folder / key for key in found if _INDEX.fullmatch(key))

    def folders(self) -> list[Path]:
        """Return the folders on this machine that hold copies."""
        inner = (path for path in self.here.glob("[0-9a-f][0-9a-f]") if path.is_dir())
        return [self.here, *sorted(inner)]

    def look_ahead(self, indices: Sequence[Path]) -> None:
        """Fetch the index files that are not on this machine yet, many at a time.

        Raises:
            StorageError: The store cannot be used, or the disk is full.
        """
        self._fetch_keys([index for index in indices if not self._copy_of(index).is_file()])

    def _fetch_keys(self, indices: Sequence[Path]) -> None:
        """Copy index files, many at a time; existing copies are replaced."""
        for start in range(0, len(indices), _AT_ONCE):
            portion = indices[start : start + _AT_ONCE]
            for index, content in zip(portion, objects.read_all(portion), strict=True):
                if isinstance(content, FileNotFoundError):  # it has just been removed
                    continue
                with read_reported(index):
                    if isinstance(content, OSError):
                        raise content
                    if len(content) != self._said(index).size:
                        raise OSError(errno.EIO, "came cut short from the object store")
                with files.replace_file(self._copy_of(index), durable=False) as partial:
                    partial.write_bytes(content)

    def stamp(self, index: Path) -> list[int]:
        """Return the stamp of a shard, from the listing of its files."""
        keys = self._said(index)
        return [self._said(tensors_of(index)).size, keys.size, keys.identity]

    def described(self, index: Path) -> StoredIndex | None:
        """Return the content of a shard's index file; None if it is damaged in the store too.

        Raises:
            OSError: The disk failed to read its copy.
            StorageError: The store cannot be used, or the disk is full.
        """
        copy = self._copy_of(index)
        stored = None
        with contextlib.suppress(OSError):
            stored = read_index(copy)
        if stored is None:  # no copy, or a damaged one; the shard may be good
            self._fetch_keys([index])
            stored = read_index(copy)
        return stored

    def is_whole(self, index: Path, entries: int) -> bool:  # noqa: ARG002 - as of a disk
        """Return whether the tensors exist; their header is checked when rows are read."""
        return self._said(tensors_of(index)).size > 0

    def size(self, index: Path) -> int:
        """Return the bytes of a shard's tensors; 0 if they are gone."""
        return self._said(tensors_of(index)).size

    def verified(self, index: Path, entries: int, sha256: str | None) -> Arrays | str:
        """Fetch a shard from the store and verify it; return its columns, or what is wrong.

        Raises:
            StorageError: The store cannot be used, or the disk is full.
        """
        stored = objects.look_up(tensors_of(index))
        if stored is None:
            return "missing"
        with scratch(self.here) as folder:
            copy = folder / f"{tensors_of(index).name}.part"
            with read_reported(tensors_of(index)):
                fetch_to(tensors_of(index), copy, stored.size)
            found = verified(copy, self._columns, entries, sha256)
            if isinstance(found, str):
                return found
            return tuple(np.array(column) for column in found)

    def write(self, name: str, columns: Mapping[str, Tensor], describe: Describe) -> Path:
        """Write a shard on this machine, then upload it to the store, keys last.

        Raises:
            StorageError: The disk is full, or the store cannot be used.
        """
        with scratch(self.here) as folder:
            tensors, keys = folder / "tensors", folder / "keys"
            with reported(self.here):
                save_file(dict(columns), tensors)
                content = files.sha256_of(tensors)
                keys.write_text(json.dumps(describe(content)) + "\n", encoding="utf-8")
            index = self._folder / f"{_with_hash(name, content)}.json"
            with reported(index):
                for file, location in ((tensors, tensors_of(index)), (keys, index)):
                    self._listed[location] = self._written[location] = objects.upload(
                        file, location
                    )
            self._keep(tensors, self._copy_of(tensors_of(index)))
            self._keep(keys, self._copy_of(index))
        self._fetcher.forget(self._name_of(index))
        return index

    def remove(self, index: Path) -> None:
        """Remove a shard, its keys first, and its copies.

        Raises:
            StorageError: The store cannot be used.
        """
        name = self._name_of(index)
        self._fetcher.forget(name)
        self._headers.pop(name, None)
        copies = [self._copy_of(file) for file in (index, tensors_of(index))]
        with reported(index):
            objects.remove(index)
            objects.remove(tensors_of(index))
        for copy in copies:
            with contextlib.suppress(OSError):  # Windows cannot remove a mapped file
                copy.unlink(missing_ok=True)
        for file in (index, tensors_of(index)):
            self._listed.pop(file, None)
            self._written.pop(file, None)

    def map(self, index: Path) -> Arrays:
        """Return the columns of a shard, mapped from its copy, which is fetched if missing.

        Raises:
            SafetensorError: The shard is damaged.
            OSError: The shard is gone, or was received incomplete.
            StorageError: The store cannot be used, or the disk is full.
        """
        copy = self._copy_of(tensors_of(index))
        if not self._room.use(copy):
            self._fetch_copy(self._name_of(index), must=True)
        try:
            return mapped(copy, self._columns)
        except SafetensorError:  # the copy is damaged; the shard may be good
            copy.unlink(missing_ok=True)
            self._fetch_copy(self._name_of(index), must=True)
            return mapped(copy, self._columns)

    def expect(self, shards: Iterable[str]) -> None:
        """Retain copies of shards that will be read, such as those of an earlier run."""
        for shard in shards:
            if shard not in self._expected:
                self._expected.add(shard)
                self._room.use(self._copy_of(self._tensors(shard)))

    def drop_copy(self, index: Path) -> bool:
        """Remove the copy of a shard, which is read row by row from now on; return True."""
        self._fetcher.refuse(self._name_of(index))
        with contextlib.suppress(OSError):  # Windows cannot remove a mapped file
            self._copy_of(tensors_of(index)).unlink(missing_ok=True)
        return True

    def rows_apart(self, shard_rows: Sequence[ShardRow]) -> dict[ShardRow, Arrays]:
        """Read rows of shards that are not copied yet, by their ranges of bytes.

        Raises:
            DatasetError: A shard does not have the columns that its name tells.
            OSError: A shard is gone, or was received incomplete.
            StorageError: The store cannot be used.
        """
        sizes = {shard: self._said(self._tensors(shard)).size for shard, _ in shard_rows}
        self._keep_expected()
        is_here = self._fetcher.are_here(sizes)
        apart = [shard_row for shard_row in dict.fromkeys(shard_rows) if not is_here[shard_row[0]]]
        if not apart:
            return {}
        self._read_headers(list(dict.fromkeys(shard for shard, _ in apart)))
        ranges = []
        for shard, row in apart:
            for column in self._headers[shard]:
                begin = column.begin + row * column.row_bytes
                ranges.append((self._tensors(shard), begin, begin + column.row_bytes))
        pieces = iter(objects.read_ranges(ranges))
        return {
            shard_row: tuple(column.row(next(pieces)) for column in self._headers[shard_row[0]])
            for shard_row in apart
        }

    def _keep_expected(self) -> None:
        """Record now and then that copies are in use, which is not noticed while they are mapped.

        A mapped copy that another process of the machine removes still takes its room.
        """
        if time.monotonic() - self._noted < _NOTED_EVERY_S:
            return
        self._noted = time.monotonic()
        for shard in tuple(self._expected):
            self._room.use(self._copy_of(self._tensors(shard)))

    def _fetch_copy(self, shard: str, *, must: bool = False) -> bool:
        """Copy a shard to this machine; False if there is no room for it.

        Raises:
            OSError: The shard is gone, or was received incomplete.
            StorageError: The store cannot be used, or the disk is full.
        """
        tensors = self._tensors(shard)
        copy, size = self._copy_of(tensors), self._said(tensors).size
        if self._room.use(copy):
            return True
        with self._room.made(copy, size, also_used=must) as is_made:
            if is_made or must:
                fetch_to(tensors, copy, size)
            return is_made or must

    def _read_headers(self, shards: Sequence[str]) -> None:
        """Locate the columns of some shards in their files."""
        fresh = [shard for shard in shards if shard not in self._headers]
        if not fresh:
            return
        begun = objects.read_beginnings([self._tensors(name) for name in fresh], HEADER_BYTES)
        for shard, content in zip(fresh, begun, strict=True):
            if isinstance(content, OSError):
                raise content
            tensors = self._tensors(shard)
            self._headers[shard] = columns_of(
                tensors, content, self._columns, self._said(tensors).size
            )

    def _keep(self, file: Path, copy: Path) -> None:
        """Use a file that was just uploaded as its copy, if there is room."""
        counted = file.stat().st_size if copy.suffix == COUNTED else 0
        with (
            self._room.made(copy, counted) as is_made,
            contextlib.suppress(OSError),  # it is in the store nevertheless
        ):
            if is_made:
                copy.parent.mkdir(parents=True, exist_ok=True)
                file.replace(copy)

    def _said(self, file: Path) -> Stored:
        return self._listed.get(file, _NOTHING)

    def _copy_of(self, file: Path) -> Path:
        """Return the path of an object's copy, with its version, so old copies are not found."""
        below = file.relative_to(self._folder)
        return self.here / below.parent / f"{self._said(file).identity:016x}.{below.name}"

    def _tensors(self, shard: str) -> Path:
        return self._folder / f"{shard}.safetensors"

    def _name_of(self, index: Path) -> str:
        return index.relative_to(self._folder).with_suffix("").as_posix()


def _with_hash(name: str, content: str) -> str:
    """Return a shard's name with a hash of its tensors before the hash of its keys."""
    start, _, digest = name.rpartition("-")
    return f"{start}-{content[:16]}-{digest}"
