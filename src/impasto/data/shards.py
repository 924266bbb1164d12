"""Arrays by key in shards on disk: the latent cache's and the text store's common ground.

A shard is `<name>.safetensors` with arrays of one length, and `<name>.json` with the keys of their
rows in order, a CRC-32 of each row and the hash of the tensors' file. The index is written last, so
a shard without one does not exist. Shards are mapped into memory, never read whole but by `check`;
a row is compared with its CRC-32 when it is read for the first time.

Several processes may share a folder: a shard is written under a lock, and without the entries that
another process has written meanwhile, so each entry is there once and never changes.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from impasto import files, locks
from impasto.data.records import CELL
from impasto.errors import DatasetError, StorageError
from impasto.parsing import parse_json, read_text

FORMAT_VERSION = 1
_SIZE = re.compile(r"shard-(\d+)x(\d+)-")
_TYPES = {"F16", "F32", "U8"}


@dataclass(frozen=True)
class BadShard:
    """A shard that cannot be used, why, and how many entries are lost with it."""

    file: Path
    reason: str
    entries: int


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
        self._open: dict[str, tuple[np.ndarray, ...]] = {}
        self._rows: dict[str, tuple[str, int]] = {}
        self._sums: dict[str, list[int]] = {}
        self._compared: dict[str, np.ndarray] = {}
        self._seen: set[Path] = set()
        self.note: Callable[[str], None] = lambda _: None
        """Is told when writing has to wait for another process."""
        self.refresh()

    def refresh(self) -> None:
        """Take in what another process has added meanwhile.

        Raises:
            DatasetError: The folder was written by a newer version.
        """
        for index in sorted(set(self.folder.glob("shard-*.json")) - self._seen):
            self._add_index(index)

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, keys: Sequence[str]) -> tuple[np.ndarray, ...]:
        """The rows of all columns, in the order of `keys`; they must have one shape.

        Gathered with NumPy, which stays on one core: a second pool of OpenMP threads, which torch
        would make in a loading thread, slows the training thread's by half on a CPU.

        Raises:
            KeyError: A key is not there.
            DatasetError: A row is not what was written; its shard is removed.
        """
        places = [self._rows[key] for key in keys]
        for shard, row in places:
            if not self._is_unchanged(shard, row):
                self._give_up(shard)
        if len({shard for shard, _ in places}) == 1:
            rows = [row for _, row in places]
            return tuple(column[rows] for column in self._shard(places[0][0]))
        columns = [self._shard(shard) for shard, _ in places]
        return tuple(
            np.stack([arrays[n][row] for arrays, (_, row) in zip(columns, places, strict=True)])
            for n in range(len(self._columns))
        )

    def write(self, label: str, keys: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
        """Add a shard with those of the entries that no process has written meanwhile.

        Raises:
            StorageError: The disk is full or the folder cannot be written.
        """
        with files.reported(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        patience = locks.LockWaiter(lambda words: self.note(words), f"writing to {self.folder}")
        with locks.FolderLock(self.folder, f"writing to the {self._what}", patience):
            self.refresh()
            new = [row for row, key in enumerate(keys) if key not in self._rows]
            if len(new) == len(keys):
                self._write(label, keys, tensors)
            elif new:
                rows = {column: tensors[column][new] for column in self._columns}
                self._write(label, [keys[row] for row in new], rows)

    def _write(self, label: str, keys: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
        """Write a shard, tensors first and index last, each durably."""
        name = f"shard-{label}-{_digest(keys)}"
        self._open.pop(name, None)  # Windows replaces no file that is mapped
        with files.replace_file(self.folder / f"{name}.safetensors") as partial:
            columns = {column: tensors[column].contiguous() for column in self._columns}
            save_file(columns, partial)
            content = files.sha256_of(partial)
        arrays = [column.numpy() for column in columns.values()]
        sums = [_sum_of(arrays, row) for row in range(len(keys))]
        index = self.folder / f"{name}.json"
        described = {"sha256": content, "keys": list(keys), "crc32": sums}
        files.write_json(index, {"format_version": FORMAT_VERSION, **described})
        self._compared.pop(name, None)
        self._add_index(index)

    def check(self, index: Path) -> BadShard | None:
        """Read a shard whole, and say what is wrong: hash, header, values that are not finite."""
        tensors = index.with_suffix(".safetensors")
        stored = _read_index(index)
        if stored is None:
            return BadShard(index, "its index cannot be read", 0)
        keys, content = stored.keys, stored.sha256
        if not self._is_whole(tensors, len(keys)):
            return BadShard(tensors, "missing, cut off, or not what its index says", len(keys))
        if content is not None and files.sha256_of(tensors) != content:
            return BadShard(tensors, "its bytes have changed since it was written", len(keys))
        for column in self._shard(index.stem):
            if not np.isfinite(column).all():
                return BadShard(tensors, "holds NaN or infinite values", len(keys))
        return None

    def indices(self) -> list[Path]:
        """The index files of all shards, readable or not."""
        return sorted(self.folder.glob("shard-*.json"))

    def remove(self, index: Path) -> None:
        """Delete a shard, its index first."""
        self._open.pop(index.stem, None)
        self._seen.discard(index)
        self._sums.pop(index.stem, None)
        self._compared.pop(index.stem, None)
        self._rows = {key: place for key, place in self._rows.items() if place[0] != index.stem}
        with files.reported(index):  # Windows removes no file that another program has mapped
            index.unlink(missing_ok=True)
            index.with_suffix(".safetensors").unlink(missing_ok=True)

    def keep_only(self, wanted: Collection[str]) -> Iterator[tuple[int, int]]:
        """Drop all other entries; after each shard, yield (entries dropped, bytes freed).

        A shard of which something stays is written anew before the old one is deleted; what is not
        as it was written does not stay.

        Raises:
            StorageError: The disk is full or the folder cannot be written.
        """
        rows: dict[str, list[tuple[str, int]]] = {index.stem: [] for index in self.indices()}
        for key, (shard, row) in self._rows.items():
            rows.setdefault(shard, []).append((key, row))
        for shard, entries in rows.items():
            kept = [(key, row) for key, row in entries if key in wanted]
            index = self.folder / f"{shard}.json"
            before = _size_of(index.with_suffix(".safetensors"))
            if len(kept) == len(entries) and entries:
                yield 0, 0
                continue
            kept = [(key, row) for key, row in kept if self._is_unchanged(shard, row)]
            freed = before
            if kept:
                label = shard.split("-")[1]
                columns = [column[[row for _, row in kept]] for column in self._shard(shard)]
                tensors = dict(zip(self._columns, map(torch.from_numpy, columns), strict=True))
                self._write(label, [key for key, _ in kept], tensors)
                self.remove(index)
                freed -= _size_of(self.folder / f"{self._rows[kept[0][0]][0]}.safetensors")
            else:
                self.remove(index)
            yield len(entries) - len(kept), freed

    def _add_index(self, index: Path) -> None:
        self._seen.add(index)
        stored = _read_index(index)
        if stored is None:
            return  # without a readable index its entries are simply made again
        if stored.version > FORMAT_VERSION:
            raise DatasetError(
                f"The {self._what} {self.folder} was written by a newer Impasto (format "
                f"{stored.version}; this one reads up to {FORMAT_VERSION}). Update Impasto or "
                f"delete the folder."
            )
        if self._is_whole(index.with_suffix(".safetensors"), len(stored.keys)):
            rows = {key: (index.stem, row) for row, key in enumerate(stored.keys)}
            self._rows.update(rows)
            if stored.sums is not None:
                self._sums[index.stem] = stored.sums

    def _is_unchanged(self, shard: str, row: int) -> bool:
        """Whether a row has its CRC-32; it is computed once."""
        sums = self._sums.get(shard)
        if sums is None:  # of a version that wrote none
            return True
        compared = self._compared.setdefault(shard, np.zeros(len(sums), dtype=bool))
        if not compared[row]:
            compared[row] = _sum_of(self._shard(shard), row) == sums[row]
        return bool(compared[row])

    def _give_up(self, shard: str) -> NoReturn:
        """Remove a shard that is not what was written, and say so.

        Raises:
            DatasetError: Always.
        """
        index = self.folder / f"{shard}.json"
        then = "It was removed; start again, or resume the run: what it held is made anew."
        try:
            self.remove(index)
        except StorageError as error:
            then = f"It could not be removed ({files.cause_of(error)}); delete it, and start again."
        raise DatasetError(
            f"{index.with_suffix('.safetensors')} of the {self._what} has changed since it was "
            f"written, as by a failing disk. {then}"
        )

    def _is_whole(self, shard: Path, entries: int) -> bool:
        """Whether the shard's header fits its length, name and index; values are not read."""
        try:
            with safe_open(shard, framework="pt") as file:
                parts = [file.get_slice(name) for name in self._columns]
                shapes = [part.get_shape() for part in parts]
                types = {part.get_dtype() for part in parts}
        except (SafetensorError, OSError, ValueError, RecursionError):
            return False
        label = _SIZE.match(shard.name)
        cells = [int(label[2]) // CELL, int(label[1]) // CELL] if label else None
        return types <= _TYPES and all(
            len(shape) > 1 and shape[0] == entries and (cells is None or shape[-2:] == cells)
            for shape in shapes
        )

    def _shard(self, name: str) -> tuple[np.ndarray, ...]:
        """The mapped tensors of a shard as arrays over the same memory."""
        if name not in self._open:
            file = self.folder / f"{name}.safetensors"
            try:
                with safe_open(file, framework="pt") as opened:
                    arrays = tuple(opened.get_tensor(column).numpy() for column in self._columns)
            except (SafetensorError, OSError) as error:
                raise DatasetError(
                    f"{file} of the {self._what} was removed or damaged while it was in use "
                    f"({error}). What it held is encoded anew when it is needed."
                ) from error
            self._open[name] = arrays
        return self._open[name]


@dataclass(frozen=True)
class _Index:
    """What the JSON file of a shard says."""

    version: int
    keys: list[str]
    sha256: str | None
    sums: list[int] | None


def _digest(keys: Sequence[str]) -> str:
    """The part of a shard's name that tells its keys and their order."""
    return hashlib.sha256("".join(keys).encode("utf-8")).hexdigest()[:16]


def _read_index(file: Path) -> _Index | None:
    """The index of a shard; None if it is damaged."""
    try:
        stored = parse_json(read_text(file))
        index = _Index(
            stored["format_version"], stored["keys"], stored.get("sha256"), stored.get("crc32")
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    whole = (
        type(index.version) is int
        and isinstance(index.keys, list)
        and all(isinstance(key, str) for key in index.keys)
        and file.stem.endswith(f"-{_digest(index.keys)}")
        and (index.sha256 is None or isinstance(index.sha256, str))
        and (index.sums is None or _are_sums(index.sums, len(index.keys)))
    )
    return index if whole else None


def _are_sums(sums: Any, count: int) -> bool:
    is_list = isinstance(sums, list) and len(sums) == count
    return is_list and all(type(value) is int for value in sums)


def _sum_of(columns: Sequence[np.ndarray], row: int) -> int:
    """The CRC-32 of a row of all columns, one after the other."""
    value = 0
    for column in columns:
        value = zlib.crc32(np.ascontiguousarray(column[row]).data, value)
    return value


def _size_of(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0
