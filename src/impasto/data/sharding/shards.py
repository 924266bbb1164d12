"""Arrays by key in shards on disk: the latent cache's and the text store's common ground.

A shard is `<name>.safetensors` with arrays of one length, and `<name>.json` with the keys of their
rows in order, a CRC-32 of each row and the hash of the tensors' file. The index is written last, so
a shard without one does not exist. Shards are mapped into memory, never read whole but by `check`;
a row is compared with its CRC-32 when it is read for the first time.

Several processes may share a folder: a shard is written under a lock, and without the entries that
another process has written meanwhile, so each entry is there once and never changes.
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
"""Shards in one folder, at most: where there are more, they go into 256 folders below it."""

_NAME = re.compile(r"(?:[0-9a-f]{2}/)?shard-[0-9a-zA-Z-]+")


class Shards:
    """A folder of shards.

    Args:
        folder: Where they are; created when something is written.
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
        """Is told when writing has to wait, and when copies of shards find no room."""
        self.refresh()

    def refresh(self) -> None:
        """Take in what another process has added meanwhile.

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
        """Take in shards by the names of `take_written`, as far as they are there.

        Raises:
            DatasetError: One was written by a newer version.
        """
        for index in (self._index_of(name) for name in names if _NAME.fullmatch(name)):
            if index not in self._seen and presence.exists(index):
                self._add_index(index)

    def take_written(self) -> list[str]:
        """The names of the shards that were written here since this was last asked for."""
        written, self._written = self._written, []
        return written

    def keep_index(self) -> None:
        """Have the next start read one file instead of one per shard, where there are many keys."""
        if self._index.is_behind:
            self._index.keep()

    def __contains__(self, key: str) -> bool:
        return self.contains([key])[0]

    def contains(self, keys: Sequence[str]) -> list[bool]:
        """Whether each of some keys is there; copies of what is are not given up from now on."""
        shard_rows = self._index.find(keys)
        self._files.expect({at[0] for at in shard_rows if at})
        return [at is not None for at in shard_rows]

    def has_all(self, keys: np.ndarray) -> bool:
        """As `contains`, whether all are: [keys, 16] bytes of hex digits, zeros for no key."""
        shards = self._index.shards_of_all(keys)
        self._files.expect(shards or ())
        return shards is not None

    def __len__(self) -> int:
        return len(self._index)

    def read(self, keys: Sequence[str]) -> tuple[np.ndarray, ...]:
        """The rows of all columns, in the order of `keys`; they must have one shape.

        Gathered with NumPy, which stays on one core: a second pool of OpenMP threads, which torch
        would make in a loading thread, slows the training thread's by half on a CPU.

        Raises:
            KeyError: A key is not there.
            DatasetError: A row is not what was written; its shard is removed.
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
        """The rows that come from an object store without their shards, each as it was written.

        Raises:
            DatasetError: A row is not what was written, also when it is read again.
        """
        return self._apart.read([at for at in shard_rows if at[0] not in self._mapped])

    def _drop_copy(self, shard: str) -> None:
        """Do without a copy that is not what was written, as by a failing disk.

        Raises:
            DatasetError: It is no copy, but the shard itself.
        """
        if not self._files.drop_copy(self._index_of(shard)):
            self._give_up(shard)
        self._mapped.close(shard)

    def write(self, label: str, keys: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
        """Add a shard with those of the entries that no process has written meanwhile.

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
        """Read a shard whole, and say what is wrong: hash, header, values that are not finite."""
        return fault_of(index, self._files)

    def verify(self, *, remove: bool) -> Iterator[BadShard | None]:
        """Read each shard whole and yield what is wrong with it, or None; perhaps delete it.

        One that the disk does not give is left: another time it may.
        """
        for index in self.indices():
            bad = self.check(index)
            if bad is not None and remove and not bad.is_unread:
                self.remove(index)
            yield bad

    def indices(self) -> list[Path]:
        """The index files of all shards, readable or not."""
        return self._files.indices()

    def remove_leftovers(self) -> None:
        """Remove what a killed process left half written."""
        for folder in self._files.folders():
            temporary_names.remove_leftovers(folder)

    def _name_of(self, index: Path) -> str:
        """What a shard is called: its path in the folder without an ending, with slashes."""
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
        """Drop all other entries; after each shard, yield (entries dropped, bytes freed).

        Shards go first of which nothing stays, as on a full disk they have to. One of which
        something stays is written anew before the old one is deleted; what is not
        as it was written does not stay. A shard that another process has added meanwhile stays, and
        so does one that the disk does not give.

        Raises:
            StorageError: The disk is full or the folder cannot be written.
        """
        partly = []
        for index in self.indices():
            found = self._entries_of(index)
            kept = wanted.among(found or [])
            if found is None or (found and len(kept) == len(found)):
                yield 0, 0
            elif kept:  # takes room before it gives any
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
            except DatasetError:  # the disk does not give it; `verify` names it
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
        """The keys that are read from a shard, with their rows; None where it has to stay."""
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
        """Remove a shard; returns how many entries go with it, and its bytes."""
        size = self._files.size(index)
        self.remove(index)
        return entries, size

    def _unchanged_rows(self, shard: str, rows: Sequence[int]) -> dict[int, Arrays]:
        """Read the rows that are as they were written, from the shard if not from its copy.

        They are copied: Windows removes no file that is mapped.
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
        stamp = self._files.stamp(index)  # before it is read: who changes it changes the stamp
        try:
            stored = self._files.described(index)
            if stored is None:
                return  # without a whole index its entries are simply made again
            require_format(stored.version, FORMAT_VERSION, self.folder, self._what)
            if self._files.is_whole(index, len(stored.keys)):
                self._index.add(self._name_of(index), stored.keys, stored.sums, stamp)
        except OSError:  # the next look may find it
            self._seen.discard(index)

    def _give_up(self, shard: str) -> NoReturn:
        """Remove a shard that is not what was written, and say so.

        Raises:
            DatasetError: Always.
        """
        index = self._index_of(shard)
        then = "It was removed; start again, or resume the run: what it held is made anew."
        try:
            self.remove(index)
        except StorageError as error:
            cause = storage_errors.cause_of(error)
            then = f"It could not be removed ({cause}); delete it, and start again."
        raise changed_shard(tensors_of(index), self._what, then)

    def _index_of(self, name: str) -> Path:
        return self.folder / f"{name}.json"
