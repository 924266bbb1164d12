"""Reads single values of Parquet and Arrow tables, on this machine or in an object store.

Parquet is read by row groups and columns, Arrow by record batches. Each is held for a while, since
the next image is likely to be in it too. A process holds up to 256 MiB of them, or a single larger
one, and has up to eight files open. Arrow files on this machine are memory-mapped instead.

Parquet's metadata of a single column is not read: with a damaged file, pyarrow 26 crashes there
(`RowGroupMetaData.column`, `ColumnChunkMetaData.statistics`) instead of raising.

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

from impasto.data.columns.arrow_batches import ArrowBatches, Part
from impasto.member_paths import PARQUET, TableCell
from impasto.remote_paths import is_remote, shown
from impasto.storage import objects
from impasto.storage.ranged_file import RangedFile, open_ranges

_HELD = 256 << 20  # bytes
_LARGEST = 1 << 30  # bytes of a row group, or of a record batch in a store
_OPEN_FILES = 8
_AHEAD = 1 << 16
_ROWS_PROBED = 16  # rows read at a time in the search for the first with bytes


class OpenTable(Protocol):
    """A table whose parts are read on request."""

    schema: pa.Schema
    starts: np.ndarray
    """[parts + 1]: the first row of each part, and the number of rows."""

    def part(self, column: str, number: int) -> Part:
        """Return a column of one part."""

    def holds_bytes(self, column: str, field: str) -> bool:
        """Return whether any struct in a column has bytes in that field."""


class ParquetTable:
    """A Parquet file, by row groups.

    Args:
        source: A path on this machine, or an object as a file.
        name: The name used in errors.

    Raises:
        OSError: The file is damaged.
    """

    def __init__(self, source: str | RangedFile, name: str) -> None:
        self._source = source
        self._file = self._opened()
        self._name = name
        self.schema = self._file.schema_arrow
        about = self._file.metadata
        rows = [about.row_group(n).num_rows for n in range(about.num_row_groups)]
        if min(rows, default=0) < 0 or sum(rows) != about.num_rows:
            raise OSError(
                errno.EINVAL, "damaged: the rows of its row groups do not add up to its total"
            )
        self.starts = np.concatenate([[0], np.cumsum(rows, dtype=np.int64)])

    def _opened(self, **options: Any) -> pq.ParquetFile:
        source = self._source
        opened = source if isinstance(source, str) else pa.PythonFile(source, mode="r")
        return pq.ParquetFile(opened, memory_map=False, **options)

    def part(self, column: str, number: int) -> Part:
        """Return a column of one row group.

        Raises:
            OSError: The row group is too large to be held in memory.
        """
        size = self._file.metadata.row_group(number).total_byte_size
        if size > _LARGEST:
            raise OSError(
                errno.EFBIG,
                f"row group {number} of {self._name} holds {size >> 20:,} MiB, more than "
                f"{_LARGEST >> 20:,} MiB; write it again with row_group_size=100",
            )
        values = self._file.read_row_group(number, columns=[column]).column(column)
        return Part(values, values.nbytes)

    def holds_bytes(self, column: str, field: str) -> bool:
        """Return whether any struct in a column has bytes; reading stops at the first."""
        file = self._opened(buffer_size=_AHEAD)
        batches = file.iter_batches(_ROWS_PROBED, columns=[f"{column}.{field}"])
        values = (batch.column(column).field(field) for batch in batches)
        return any(part.null_count < len(part) for part in values)


class _Tables:
    """The tables that a process has open, and the parts of them that it holds."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._open: OrderedDict[tuple[str, int, int], OpenTable] = OrderedDict()
        self._parts: OrderedDict[tuple[OpenTable, str, int], Part] = OrderedDict()

    def open(self, path: Path) -> OpenTable:
        """Return a table; it is opened again if the file has changed."""
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
        """Return a part of a table; it is held until others need its space."""
        key = (table, column, number)
        if key not in self._parts:
            fresh = table.part(column, number)
            while self._parts and fresh.held_bytes + self._held() > _HELD:
                self._parts.popitem(last=False)
            self._parts[key] = fresh
        self._parts.move_to_end(key)
        return self._parts[key].values

    def _held(self) -> int:
        return sum(part.held_bytes for part in self._parts.values())


_OF_PROCESS: dict[int, _Tables] = {}


def read_cell(cell: TableCell) -> Any:
    """Return a value of a table as a Python value, as `pyarrow` converts it.

    Raises:
        OSError: The table cannot be read, is damaged, or has no such value.
        StorageError: It is in an object store that cannot be used.
    """
    tables = _OF_PROCESS.setdefault(os.getpid(), _Tables())
    with tables.lock, arrow_errors():
        table = tables.open(cell.container)
        if not 0 <= cell.row < table.starts[-1] or cell.column not in table.schema.names:
            raise OSError(errno.EINVAL, "the table has changed: it no longer has this value")
        number = int(np.searchsorted(table.starts, cell.row, side="right")) - 1
        column = tables.part(table, cell.column, number)
        row = cell.row - int(table.starts[number])
        if row >= len(column):
            raise OSError(
                errno.EINVAL, f"damaged: a part of it has {len(column)} rows, fewer than it states"
            )
        return column[row].as_py()


def open_table(path: Path, size: int) -> ParquetTable | ArrowBatches:
    """Open a table; the file extension determines its format.

    Raises:
        OSError: It cannot be read, or is cut short.
        StorageError: It is in an object store that cannot be used.
    """
    with arrow_errors():
        if path.suffix.lower() == PARQUET:
            source = open_ranges(path, size, _AHEAD) if is_remote(path) else str(path)
            return ParquetTable(source, path.name)
        return ArrowBatches(path, size, _LARGEST)


@contextmanager
def arrow_errors() -> Iterator[None]:
    """Convert Arrow's errors about damaged files to `OSError`, which concerns one file only.

    Raises:
        OSError: The file is damaged, or is not a table.
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
    """Return path, size and stamp of a table; for a table in a store they are looked up only once.

    Raises:
        FileNotFoundError: The table is missing from its store.
        StorageError: The store cannot be used.
    """
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
"""Size and stamp of tables in stores; looking them up again for each image takes too long."""


def forget_stored() -> None:
    """Forget the size and stamp of tables in stores, since these may have been replaced."""
    _SIZES.clear()
