"""Arrays by key in shards on disk or in a store: the basis of the latent cache and the text store.

A shard is `<name>.safetensors` with arrays of one length, and `<name>.json`, its index, with the
keys of their rows in order, a CRC-32 of each row and the hash of the tensors' file. The index is
written last, so a shard without one does not exist. Shards are mapped into memory, and only `check`
reads them whole; a row is compared with its CRC-32 when it is first read.

Several processes may share a folder: a shard is written under a lock, without the entries that
another process has written meanwhile, so each entry exists once and never changes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from impasto import locks, presence, storage_errors, temporary_names
from impasto.data.sharding import orphans
from impasto.data.sharding.key_set import KeySet
from impasto.data.sharding.mapped_shards import MappedShards, ShardSource
from impasto.data.sharding.rows_apart import RowsApart
from impasto.data.sharding.shard_faults import changed_shard, fault_of, require_format
from impasto.data.sharding.shard_files import BadShard, digest_of, sum_of_row
from impasto.data.sharding.shard_index import ShardIndex, ShardRow
from impasto.data.sharding.shard_store import Arrays, LocalShardFiles, ShardFiles, tensors_of
from impasto.data.sharding.stored_shards import StoredShardFiles
from impasto.errors import DatasetError, StorageError
from impasto.remote_paths import is_remote

FORMAT_VERSION = 1
SHARDS_IN_A_FOLDER = 1000
"""Most shards in one folder: further shards go into 256 folders below it."""

_NAME = re.compile(r"(?:[0-9a-f]{2}/)?shard-[0-9a-zA-Z-]+")


class Shards:
    """A folder of shards.

    Args:
        folder: The folder; created when a shard is written.
        columns: The names of the arrays in each shard.
        what: What the folder is called in messages.

    Raises:
        DatasetError: The folder was written by a newer version.
    """

    def __init__(self, folder: Path, columns: tuple[str, ...], what: str) -> None:
        self.folder, self._columns, self._what = folder, columns, what
        self._files: ShardFiles = (
            StoredShardFiles(folder, columns, lambda message: self.note(message))
            if is_remote(folder)
            else LocalShardFiles(folder, columns)
        )
        self._index = ShardIndex(folder / "index.table")
        source = ShardSource(self._files, folder, what, self._index.sum_of)
        self._mapped, self._apart = MappedShards(source), RowsApart(source)
        self._seen: set[Path] = set()
        self._written: list[str] = []
        self.note: Callable[[str], None] = lambda _: None
        """Receives messages when writing has to wait, and when copies of shards do not fit."""
        self.refresh()

    def refresh(self) -> None:
        """Add the shards that other processes have written meanwhile.

        Raises:
            DatasetError: The folder was written by a newer version.
        """
        there = self.indices()
        if not self._seen and len(there) > 1:
            known = self._index.open_kept({self._name_of(i): self._files.stamp(i) for i in there})
            self._seen = {index for index in there if self._name_of(index) in known}
        fresh = [index for index in there if index not in self._seen]
        self._files.look_ahead(fresh)
        for index in fresh:
            self._add_index(index)

    def take_in(self, names: Collection[str]) -> None:
        """Add existing shards by the names that `take_written` returned in another process.

        Raises:
            DatasetError: A shard was written by a newer version.
        """
        for index in (self._index_of(name) for name in names if _NAME.fullmatch(name)):
            if index not in self._seen and presence.exists(index):
                self._add_index(index)

    def take_written(self) -> list[str]:
        """Return the names of the shards that this object has written since the last call."""
        written, self._written = self._written, []
        return written

    def keep_index(self) -> None:
        """Write one file that the next start reads instead of one per shard, if keys are many."""
        if self._index.is_behind:
            self._index.keep()

    def __contains__(self, key: str) -> bool:
        return self.contains([key])[0]

    def contains(self, keys: Sequence[str]) -> list[bool]:
        """Return whether each key exists, and retain copies of their shards from now on."""
        shard_rows = self._index.find(keys)
        self._files.expect({at[0] for at in shard_rows if at})
        return [at is not None for at in shard_rows]

    def has_all(self, keys: np.ndarray) -> bool:
        """Return whether `contains` holds for all: [keys, 16] bytes of hex digits, 0 for no key."""
        shards = self._index.shards_of_all(keys)
        self._files.expect(shards or ())
        return shards is not None

    def __len__(self) -> int:
        return len(self._index)

    def read(self, keys: Sequence[str]) -> tuple[np.ndarray, ...]:
        """Return the rows of all columns, in the order of `keys`; they must have the same shape.

        Gathered with NumPy, which stays on one core: a second pool of OpenMP threads, which torch
        would create in a loading thread, makes the training thread slower by half on a CPU.

        Raises:
            KeyError: A key does not exist.
            DatasetError: A row does not match its CRC-32; its shard is removed.
        """
        shard_rows = self._index.rows_of(keys)
        apart = self._read_apart(shard_rows)
        for shard, row in shard_rows:
            if (shard, row) not in apart and not self._mapped.is_unchanged(shard, row):
                self._drop_copy(shard)
                apart |= self._read_apart([at for at in shard_rows if at[0] == shard])
        if not apart and len({shard for shard, _ in shard_rows}) == 1:
            rows = [row for _, row in shard_rows]
            return tuple(column[rows] for column in self._mapped.columns(shard_rows[0][0]))
        found = [apart.get(at) or self._mapped.row(*at) for at in shard_rows]
        return tuple(np.stack([arrays[n] for arrays in found]) for n in range(len(self._columns)))

    def _read_apart(self, shard_rows: Sequence[ShardRow]) -> dict[ShardRow, tuple[np.ndarray, ...]]:
        """Read rows of an object store's shards that are not copied, each checked by CRC-32.

        Raises:
            DatasetError: A row does not match its CRC-32, even when read a second time.
        """
        return self._apart.read([at for at in shard_rows if at[0] not in self._mapped])

    def _drop_copy(self, shard: str) -> None:
        """Stop using a copy whose content has changed, as by a failing disk.

        Raises:
            DatasetError: The file is not a copy but the shard itself, which is removed.
        """
        if not self._files.drop_copy(self._index_of(shard)):
            self._give_up(shard)
        self._mapped.close(shard)

    def write(self, label: str, keys: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
        """Add a shard with the entries that no other process has written meanwhile.

        Raises:
            StorageError: The disk is full or the folder cannot be written.
        """
        here = self._files.here
        with storage_errors.reported(here):
            here.mkdir(parents=True, exist_ok=True)
        patience = locks.LockWaiter(lambda text: self.note(text), f"writing to {self.folder}")
        with locks.FolderLock(self.folder, f"writing to the {self._what}", patience):
            self.refresh()
            new = [row for row, is_there in enumerate(self.contains(keys)) if not is_there]
            if len(new) == len(keys):
                self._write(label, keys, tensors)
            elif new:
                rows = {column: tensors[column][new] for column in self._columns}
                self._write(label, [keys[row] for row in new], rows)

    def _write(self, label: str, keys: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
        """Write a shard, tensors first and index last."""
        digest = digest_of(keys)
        inner = f"{digest[:2]}/" if len(self._seen) >= SHARDS_IN_A_FOLDER else ""
        name = f"{inner}shard-{label}-{digest}"
        self._mapped.close(name)
        columns = {column: tensors[column].contiguous() for column in self._columns}
        arrays = [column.numpy() for column in columns.values()]
        sums = [sum_of_row(arrays, row) for row in range(len(keys))]

        def described(content: str) -> dict[str, Any]:
            own = {"sha256": content, "keys": list(keys), "crc32": sums}
            return {"format_version": FORMAT_VERSION, **own}

        index = self._files.write(name, columns, described)
        self._mapped.close(name)
        self._add_index(index)
        self._written.append(self._name_of(index))

    def check(self, index: Path) -> BadShard | None:
        """Read a whole shard, and return its fault, as `fault_of` does; None if it has none."""
        return fault_of(index, self._files)

    def verify(self, *, remove: bool) -> Iterator[BadShard | None]:
        """Read each whole shard, yield its fault or None, and delete faulty ones if requested.

        A shard that the disk fails to read is not deleted, since a later read may succeed.
        """
        for index in self.indices():
            bad = self.check(index)
            if bad is not None and remove and not bad.is_unread:
                self.remove(index)
            yield bad

    def indices(self) -> list[Path]:
        """Return the index files of all shards, readable or not."""
        return self._files.indices()

    def remove_leftovers(self) -> None:
        """Remove unfinished files of a killed process."""
        for folder in self._files.folders():
            temporary_names.remove_leftovers(folder)

    def _name_of(self, index: Path) -> str:
        """Return the name of a shard: its path in the folder without a suffix, with slashes."""
        return index.relative_to(self.folder).with_suffix("").as_posix()

    def remove(self, index: Path) -> None:
        """Delete a shard, its index first."""
        name = self._name_of(index)
        self._mapped.close(name)
        self._seen.discard(index)
        self._index.remove(name)
        self._files.remove(index)

    def remove_orphans(self) -> int:
        """Remove tensors whose keys were never written, and return their bytes.

        Raises:
            StorageError: The folder is in an object store that cannot be used.
        """
        if is_remote(self.folder):
            return orphans.remove_from_store(self.folder)
        return orphans.remove_from_disk(self._files.folders())

    def keep_only(self, wanted: KeySet) -> Iterator[tuple[int, int]]:
        """Remove all other entries; after each shard, yield (entries removed, bytes freed).

        Shards without any wanted entry are removed first, to free room if the disk is full. A shard
        with some wanted entries is rewritten before the old one is deleted; rows that fail their
        CRC-32 are not retained. Shards that another process has added meanwhile, or that the disk
        fails to read, remain.

        Raises:
            StorageError: The disk is full or the folder cannot be written.
        """
        partly = []
        for index in self.indices():
            found = self._entries_of(index)
            kept = wanted.among(found or [])
            if found is None or (found and len(kept) == len(found)):
                yield 0, 0
            elif kept:  # needs room before it frees any
                partly.append(index)
            else:
                yield self._drop(index, len(found))
        for index in partly:
            if (found := self._entries_of(index)) is None:
                yield 0, 0
                continue
            kept = wanted.among(found)
            try:
                rows = self._unchanged_rows(self._name_of(index), [row for _, row in kept])
            except DatasetError:  # the disk failed to read it; `verify` reports it
                yield 0, 0
                continue
            kept = [(key, row) for key, row in kept if row in rows]
            if not kept:
                yield self._drop(index, len(found))
                continue
            columns = map(np.stack, zip(*(rows[row] for _, row in kept), strict=True))
            tensors = dict(zip(self._columns, map(torch.from_numpy, columns), strict=True))
            self._write(self._name_of(index).split("-")[1], [key for key, _ in kept], tensors)
            grown = self._files.size(self._index_of(self._written[-1]))
            yield len(found) - len(kept), self._drop(index, 0)[1] - grown

    def _entries_of(self, index: Path) -> list[tuple[str, int]] | None:
        """Return the keys that are read from a shard, with their rows; None if it must remain."""
        if index not in self._seen:
            return None
        try:
            stored = self._files.described(index)
        except OSError:
            return None
        keys = stored.keys if stored is not None else []
        found = zip(keys, self._index.find(keys), strict=True)
        return [(key, at[1]) for key, at in found if at and at[0] == self._name_of(index)]

    def _drop(self, index: Path, entries: int) -> tuple[int, int]:
        """Remove a shard; return how many entries are removed with it, and its bytes."""
        size = self._files.size(index)
        self.remove(index)
        return entries, size

    def _unchanged_rows(self, shard: str, rows: Sequence[int]) -> dict[int, Arrays]:
        """Read the rows that match their CRC-32, from the shard if not from its copy.

        They are copied in memory, since Windows cannot remove a mapped file.
        """
        good = [row for row in rows if self._mapped.is_unchanged(shard, row)]
        unchanged = {row: tuple(map(np.array, self._mapped.row(shard, row))) for row in good}
        changed = [(shard, row) for row in rows if row not in unchanged]
        if changed and self._files.drop_copy(self._index_of(shard)):
            self._mapped.close(shard)
            apart = self._apart.unchanged(changed)
            unchanged |= {row: arrays for (_, row), arrays in apart.items()}
        return unchanged

    def _add_index(self, index: Path) -> None:
        self._seen.add(index)
        stamp = self._files.stamp(index)  # read before the index, so that a later change is noticed
        try:
            stored = self._files.described(index)
            if stored is None:
                return  # without a complete index, its entries are encoded again
            require_format(stored.version, FORMAT_VERSION, self.folder, self._what)
            if self._files.is_whole(index, len(stored.keys)):
                self._index.add(self._name_of(index), stored.keys, stored.sums, stamp)
        except OSError:  # the next refresh may read it
            self._seen.discard(index)

    def _give_up(self, shard: str) -> NoReturn:
        """Remove a shard whose content has changed, and raise an error.

        Raises:
            DatasetError: Always.
        """
        index = self._index_of(shard)
        then = "It was removed; start again, or resume the run: its content is encoded again."
        try:
            self.remove(index)
        except StorageError as error:
            cause = storage_errors.cause_of(error)
            then = f"It could not be removed ({cause}); delete it, and start again."
        raise changed_shard(tensors_of(index), self._what, then)

    def _index_of(self, name: str) -> Path:
        return self.folder / f"{name}.json"
