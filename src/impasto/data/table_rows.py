"""Reads single values of Parquet and Arrow tables, on this machine or in an object store.

Parquet is read by row groups and columns, Arrow by record batches: each is kept for a while, since
the next image is likely to be in it too. A process holds up to 256 MiB of them, or the one that is
larger, and has eight files open. Arrow files of this machine are mapped into memory instead.

Formats: https://parquet.apache.org/docs/file-format and
https://arrow.apache.org/docs/format/Columnar.html, "Serialization and Interprocess Communication".
"""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from impasto.data.arrow_batches import ArrowBatches
from impasto.member_paths import PARQUET, TableCell
from impasto.remote_paths import is_remote, shown
from impasto.storage import objects
from impasto.storage.ranged_file import RangedFile

_HELD = 256 << 20  # bytes
_LARGEST = 1 << 30  # bytes of a row group's column, or of a record batch in a store
_OPEN_FILES = 8
_AHEAD = 1 << 16


class OpenTable(Protocol):
    """A table whose parts are read when they are asked for."""

    schema: pa.Schema
    starts: np.ndarray
    """[parts + 1]: the first row of each part, and the number of rows."""

    def part(self, column: str, number: int) -> pa.ChunkedArray:
        """A column of one part."""

    def held_bytes(self, column: str, number: int) -> int:
        """What keeping a part takes in memory that is not mapped."""


class ParquetTable:
    """A Parquet file, by row groups.

    Args:
        source: A path of this machine, or an object as a file.
        name: What errors call it.
    """

    def __init__(self, source: str | RangedFile, name: str) -> None:
        opened = source if isinstance(source, str) else pa.PythonFile(source, mode="r")
        self._file = pq.ParquetFile(opened, memory_map=False)
        self._name = name
        self.schema = self._file.schema_arrow
        about = self._file.metadata
        rows = [about.row_group(n).num_rows for n in range(about.num_row_groups)]
        self.starts = np.concatenate([[0], np.cumsum(rows, dtype=np.int64)])

    def part(self, column: str, number: int) -> pa.ChunkedArray:
        """A column of one row group.

        Raises:
            OSError: It is too large to be held in memory.
        """
        size = self.held_bytes(column, number)
        if size > _LARGEST:
            raise OSError(
                errno.EFBIG,
                f"row group {number} of {self._name} holds {size >> 20:,} MiB of {column}, more "
                f"than {_LARGEST >> 20:,} MiB; write it anew with row_group_size=100",
            )
        return self._file.read_row_group(number, columns=[column]).column(column)

    def held_bytes(self, column: str, number: int) -> int:
        """The bytes of a column of one row group, with all that is below it."""
        group = self._file.metadata.row_group(number)
        parts = [group.column(n) for n in range(group.num_columns)]
        below = f"{column}."
        return sum(
            part.total_uncompressed_size
            for part in parts
            if part.path_in_schema == column or part.path_in_schema.startswith(below)
        )

    def empty_values(self, leaf: str) -> int | None:
        """How many values of a column, such as `image.bytes`, are missing; None if not known."""
        missing = 0
        about = self._file.metadata
        for number in range(about.num_row_groups):
            group = about.row_group(number)
            own = [group.column(n) for n in range(group.num_columns)]
            said = next((part.statistics for part in own if part.path_in_schema == leaf), None)
            if said is None or not said.has_null_count:
                return None
            missing += said.null_count
        return missing


class _Tables:
    """The tables that a process has open, and the parts of them that it holds."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._open: OrderedDict[tuple[str, int, int], OpenTable] = OrderedDict()
        self._parts: OrderedDict[tuple[OpenTable, str, int], pa.ChunkedArray] = OrderedDict()

    def open(self, path: Path) -> OpenTable:
        """A table; opened anew where the file is another than it was."""
        key = _identity(path)
        found = self._open.get(key)
        if found is None:
            found = self._open[key] = open_table(path, key[1])
            if len(self._open) > _OPEN_FILES:
                _, gone = self._open.popitem(last=False)
                for part in [part for part in self._parts if part[0] is gone]:
                    del self._parts[part]
        self._open.move_to_end(key)
        return found

    def part(self, table: OpenTable, column: str, number: int) -> pa.ChunkedArray:
        """A part of a table, held until others need its room."""
        key = (table, column, number)
        found = self._parts.get(key)
        if found is None:
            own = table.held_bytes(column, number)
            while self._parts and own + self._held() > _HELD:
                self._parts.popitem(last=False)
            found = self._parts[key] = table.part(column, number)
        self._parts.move_to_end(key)
        return found

    def _held(self) -> int:
        return sum(table.held_bytes(column, number) for table, column, number in self._parts)


_OF_PROCESS: dict[int, _Tables] = {}


def read_cell(cell: TableCell) -> Any:
    """A value of a table, as `pyarrow` makes it of Python's own types.

    Raises:
        OSError: The table cannot be read, is damaged, or has no such value.
        StorageError: It is in an object store that cannot be used.
    """
    tables = _OF_PROCESS.setdefault(os.getpid(), _Tables())
    with tables.lock, arrow_errors():
        table = tables.open(cell.container)
        if not 0 <= cell.row < table.starts[-1] or cell.column not in table.schema.names:
            raise OSError(errno.EINVAL, "the table has changed: it has no such value any more")
        number = int(np.searchsorted(table.starts, cell.row, side="right")) - 1
        column = tables.part(table, cell.column, number)
        return column[cell.row - int(table.starts[number])].as_py()


def open_table(path: Path, size: int) -> ParquetTable | ArrowBatches:
    """Open a table, by its ending.

    Raises:
        OSError: It cannot be read, or is cut short.
        StorageError: It is in an object store that cannot be used.
    """
    with arrow_errors():
        if path.suffix.lower() == PARQUET:
            source = RangedFile(path, size, _AHEAD) if is_remote(path) else str(path)
            return ParquetTable(source, path.name)
        return ArrowBatches(path, size, _LARGEST)


@contextmanager
def arrow_errors() -> Iterator[None]:
    """Turn what Arrow says of a damaged file into an error of one file.

    Raises:
        OSError: The file is damaged, or no table.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise
        raise OSError(errno.EINVAL, " ".join(str(error).split())) from error
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise OSError(errno.EINVAL, " ".join(str(error).split())) from error


def _identity(path: Path) -> tuple[str, int, int]:
    """What a table is known by as long as it is the same: in a store its path, while it is open."""
    if not is_remote(path):
        status = path.stat()
        return str(path), status.st_size, status.st_mtime_ns
    known = _SIZES.get(str(path))
    if known is None:
        stored = objects.look_up(path)
        if stored is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), shown(path))
        known = _SIZES[str(path)] = (stored.size, stored.identity)
    return str(path), *known


_SIZES: dict[str, tuple[int, int]] = {}
"""Tables in stores that this process has looked at: asking again for each image takes too long."""
