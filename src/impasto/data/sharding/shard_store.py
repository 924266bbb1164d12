"""The files of shards, in a folder on disk or in an object store.

`Shards` names shards by the paths of their index files, in either; the code that opens, writes and
removes files is here and in `stored_shards.py`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from impasto import files, storage_errors
from impasto.data.records import CELL
from impasto.data.sharding.shard_files import NO_FILE, StoredIndex, read_index, stamp_of_shard
from impasto.data.sharding.shard_index import ShardRow
from impasto.errors import StorageError

_SIZE = re.compile(r"shard-(\d+)x(\d+)-")
_TYPES = {"F16", "F32", "U8"}

Arrays = tuple[np.ndarray, ...]
"""The columns of a shard, or of some rows of it."""

Describe = Callable[[str], Mapping[str, Any]]
"""Makes the content of a shard's index file from the SHA-256 of its tensors' file."""


class ShardFiles(Protocol):
    """The files of a folder of shards."""

    @property
    def here(self) -> Path:
        """The folder on this machine that holds locks and unfinished files."""

    def indices(self) -> list[Path]:
        """Return the index files, which hold the keys, of all shards, readable or not."""

    def folders(self) -> list[Path]:
        """Return the folders on this machine that files are written in."""

    def look_ahead(self, indices: Sequence[Path]) -> None:
        """Prepare for reading these index files."""

    def stamp(self, index: Path) -> list[int]:
        """Return the stamp of a shard."""

    def described(self, index: Path) -> StoredIndex | None:
        """Return the content of a shard's index file; None if it is damaged.

        Raises:
            OSError: The disk failed to read it.
        """

    def is_whole(self, index: Path, entries: int) -> bool:
        """Return whether a shard's tensors seem complete; values are not read.

        Raises:
            OSError: The disk failed to read them.
        """

    def size(self, index: Path) -> int:
        """Return the bytes of a shard's tensors; 0 if they are gone."""

    def verified(self, index: Path, entries: int, sha256: str | None) -> Arrays | str:
        """Read a shard from disk or store and verify it; return its columns, or what is wrong.

        Raises:
            OSError: The disk failed to read it.
        """

    def write(self, name: str, columns: Mapping[str, Tensor], describe: Describe) -> Path:
        """Write a shard, tensors first and keys last, and return its index file."""

    def remove(self, index: Path) -> None:
        """Remove a shard, its keys first."""

    def map(self, index: Path) -> Arrays:
        """Return the columns of a shard, mapped into memory."""

    def expect(self, shards: Iterable[str]) -> None:
        """Prepare for reading shards, in the order in which they will be read."""

    def drop_copy(self, index: Path) -> bool:
        """Stop using a copy of a shard; False if the file on this machine is not a copy."""

    def rows_apart(self, shard_rows: Sequence[ShardRow]) -> dict[ShardRow, Arrays]:
        """Read rows of shards that are not copied, by ranges of bytes; empty if all are copied."""


class LocalShardFiles:
    """Shards in a folder on disk.

    Args:
        folder: The folder of the shards.
        columns: The names of the arrays in each shard.
    """

    def __init__(self, folder: Path, columns: tuple[str, ...]) -> None:
        self.here, self._columns = folder, columns

    def indices(self) -> list[Path]:
        """Return the index files, which hold the keys, of all shards, readable or not."""
        inner = self.here.glob("[0-9a-f][0-9a-f]/shard-*.json")
        return sorted([*self.here.glob("shard-*.json"), *inner])

    def folders(self) -> list[Path]:
        """Return the folder, and the folders in it that hold shards."""
        inner = (path for path in self.here.glob("[0-9a-f][0-9a-f]") if path.is_dir())
        return [self.here, *sorted(inner)]

    def look_ahead(self, indices: Sequence[Path]) -> None:
        """Do nothing: files on a disk are read when needed."""

    def stamp(self, index: Path) -> list[int]:
        """Return the stamp of a shard."""
        return stamp_of_shard(index)

    def described(self, index: Path) -> StoredIndex | None:
        """Return the content of a shard's index file; None if it is damaged."""
        return read_index(index)

    def is_whole(self, index: Path, entries: int) -> bool:
        """Return whether a shard's header fits its length, name and index; values are not read."""
        return fits(tensors_of(index), self._columns, entries)

    def size(self, index: Path) -> int:
        """Return the bytes of a shard's tensors; 0 if they are gone."""
        file = tensors_of(index)
        return file.stat().st_size if file.is_file() else 0

    def verified(self, index: Path, entries: int, sha256: str | None) -> Arrays | str:
        """Verify a shard's bytes; return its columns, or what is wrong with it."""
        return verified(tensors_of(index), self._columns, entries, sha256)

    def write(self, name: str, columns: Mapping[str, Tensor], describe: Describe) -> Path:
        """Write a shard, tensors first and keys last, each durably.

        Raises:
            StorageError: The disk is full or the folder cannot be written; no tensors without keys
                are left behind.
        """
        index = self.here / f"{name}.json"
        with files.replace_file(tensors_of(index)) as partial:
            save_file(dict(columns), partial)
            content = files.sha256_of(partial)
        try:
            files.write_json(index, describe(content))
        except StorageError:
            with contextlib.suppress(OSError):
                tensors_of(index).unlink()
            raise
        return index

    def remove(self, index: Path) -> None:
        """Remove a shard, its keys first.

        Raises:
            StorageError: It cannot be removed, such as a file that a program on Windows has mapped.
        """
        with storage_errors.reported(index):
            index.unlink(missing_ok=True)
            tensors_of(index).unlink(missing_ok=True)

    def map(self, index: Path) -> Arrays:
        """Return the columns of a shard, mapped into memory.

        Raises:
            SafetensorError: The shard is damaged.
            OSError: The shard is gone.
        """
        return mapped(tensors_of(index), self._columns)

    def expect(self, shards: Iterable[str]) -> None:
        """Do nothing: shards on a disk are not fetched ahead."""

    def drop_copy(self, index: Path) -> bool:  # noqa: ARG002
        """Return False: no file here is a copy."""
        return False

    def rows_apart(self, shard_rows: Sequence[ShardRow]) -> dict[ShardRow, Arrays]:  # noqa: ARG002
        """Return no rows: shards on a disk are mapped whole."""
        return {}


def tensors_of(index: Path) -> Path:
    """Return the file of a shard's tensors, from the path of its index."""
    return index.with_suffix(".safetensors")


def mapped(file: Path, columns: Sequence[str]) -> Arrays:
    """Return the columns of a file of tensors, as arrays over the mapped memory.

    Raises:
        SafetensorError: The file is damaged.
        OSError: The file is gone.
    """
    with safe_open(file, framework="pt") as opened:
        return tuple(opened.get_tensor(column).numpy() for column in columns)


def fits(file: Path, columns: Sequence[str], entries: int) -> bool:
    """Return whether the header of a file of tensors fits its length, its name and its keys.

    Raises:
        OSError: The disk failed to read it; its content may still be intact.
    """
    try:
        # safetensors reports every file that it cannot open as missing
        with file.open("rb"), safe_open(file, framework="pt") as opened:
            slices = [opened.get_slice(name) for name in columns]
            shapes = [piece.get_shape() for piece in slices]
            types = {piece.get_dtype() for piece in slices}
    except (*NO_FILE, SafetensorError, ValueError, RecursionError):
        return False
    return types <= _TYPES and have_shape(file.name, shapes, entries)


def have_shape(name: str, shapes: Sequence[Sequence[int]], entries: int) -> bool:
    """Return whether these shapes are those of a shard with this name and number of rows."""
    label = _SIZE.search(name)
    cells = [int(label[2]) // CELL, int(label[1]) // CELL] if label else None
    return all(
        len(shape) > 1 and shape[0] == entries and (cells is None or list(shape[-2:]) == cells)
        for shape in shapes
    )


def verified(file: Path, columns: Sequence[str], entries: int, sha256: str | None) -> Arrays | str:
    """Verify a file of tensors by its bytes; return its columns, or what is wrong with it.

    Raises:
        OSError: The disk failed to read it; its content may still be intact.
    """
    if not fits(file, columns, entries):
        return "missing, truncated, or different from its index"
    # read whole in any case: a mapped page that the disk fails to read kills the process
    content = files.sha256_of(file)
    if sha256 is not None and content != sha256:
        return "its bytes have changed since it was written"
    return mapped(file, columns)
