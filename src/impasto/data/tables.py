"""Tables on disk that grow while work is done: Arrow files of one kind in a folder.

A table is a folder of segments, each an Arrow IPC file that appears whole by one rename and never
changes, so readers and any number of writers need no lock, on network disks too. A segment's name
holds when it was written, by whom, and the CRC-32 and length of all its bytes, which are compared
before anything in it is believed: a damaged segment is as good as none. Columns are mapped into
memory, so the processes of a machine share them.

Who looks something up takes the newest row of a key. `rewrite` makes one segment of many.

Format: https://arrow.apache.org/docs/format/Columnar.html, "IPC File Format", uncompressed.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc

from impasto import files
from impasto.data.remembered import recall
from impasto.errors import StorageError
from impasto.owners import current_process

_SEGMENT = re.compile(r"seg-\d{20}-[^.]+-([0-9a-f]{8})-(\d+)\.arrow")
_ABOUT, _REPLACES = b"impasto", b"replaces"
_READ_AT_ONCE = 1 << 22
MANY_SEGMENTS = 8


@dataclass(frozen=True)
class Former:
    """The JSON file that a table takes the place of.

    Attributes:
        file: The file; it is read once, and then removed.
        version: What it belongs to.
        convert: Makes rows of its content; may raise what wrong content raises.
    """

    file: Path
    version: list[Any]
    convert: Callable[[Any], pa.Table]


class TableFolder:
    """A table on disk.

    Args:
        folder: Where its segments are; created when something is written. None keeps nothing.
        schema: The columns.
        version: What rows belong to, such as a format and a folder: others are not read.
        former: The file of earlier versions that is moved over.
    """

    def __init__(
        self,
        folder: Path | None,
        schema: pa.Schema,
        version: Sequence[Any],
        former: Former | None = None,
    ) -> None:
        self.folder, self._former = folder, former
        about = json.dumps(list(version), ensure_ascii=False).encode("utf-8", "surrogatepass")
        self.schema = schema.with_metadata({_ABOUT: about})
        self._known: list[str] = []

    def is_untidy(self, rows: int, useful: int) -> bool:
        """Whether the table has so many segments, or rows of no use, that it should be rewritten.

        Args:
            rows: How many it has.
            useful: How many of them are the newest of something that is still there.
        """
        if self.folder is None:
            return False
        return len(self._known) > MANY_SEGMENTS or rows - useful > rows // 8

    def read(self) -> pa.Table:
        """All rows, those of the newest segment first; columns are mapped, not read.

        Damaged segments, and those of another version, count as none.
        """
        found: list[pa.Table] = []
        self._known, replaced = [], set[str]()
        for file in reversed(self._files()):
            if file.name in replaced:  # it was mapped by somebody on Windows, and could not go
                _unlink(file)
                continue
            self._known.append(file.name)
            table = _open(file, self.schema)
            if table is not None:
                replaced |= set(json.loads(table.schema.metadata.get(_REPLACES, b"[]")))
                found.append(table.replace_schema_metadata(self.schema.metadata))
        former = self._move_over()
        if former is not None:
            found.append(former)
        return pa.concat_tables([*found, self.schema.empty_table()])

    def newest(self) -> pa.Table | None:
        """The newest whole segment, with what `rewrite` was told about it in its metadata."""
        for file in reversed(self._files()):
            self._known.append(file.name)
            table = _open(file, self.schema)
            if table is not None:
                return table
        return None

    def append(self, rows: pa.Table) -> None:
        """Add rows as a segment, durably; nothing within `files.dry_run`.

        Raises:
            StorageError: The disk is full or the folder cannot be written.
        """
        if self.folder is not None and len(rows) and files.writes_caches():
            self._known.append(_write(self.folder, rows.cast(self.schema)).name)

    def rewrite(self, rows: pa.Table, about: Mapping[bytes, bytes] | None = None) -> pa.Table:
        """Put one segment in the place of all that were read; returns it, mapped.

        What another process has appended meanwhile stays.

        Args:
            rows: What it holds.
            about: More metadata, which `newest` gives back.

        Raises:
            StorageError: The disk is full or the folder cannot be written.
        """
        if self.folder is None or not files.writes_caches():
            return rows
        former, self._known = self._known, []
        for name in former if not len(rows) else ():
            _unlink(self.folder / name)
        if not len(rows):
            return rows
        replaced = {_REPLACES: json.dumps(former).encode("ascii")}
        told = {**self.schema.metadata, **replaced, **(about or {})}
        file = _write(self.folder, rows.cast(self.schema).replace_schema_metadata(told))
        self._known.append(file.name)
        for name in former:
            _unlink(self.folder / name)
        table = _open(file, self.schema)
        return rows if table is None else table.replace_schema_metadata(self.schema.metadata)

    def _files(self) -> list[Path]:
        if self.folder is None or not self.folder.is_dir():
            return []
        return sorted(file for file in self.folder.iterdir() if _SEGMENT.fullmatch(file.name))

    def _move_over(self) -> pa.Table | None:
        """The rows of the JSON file of earlier versions, which is removed."""
        former = self._former
        if former is None or not former.file.is_file():
            return None
        content = recall(former.file, former.version)
        try:
            rows = None if content is None else former.convert(content).cast(self.schema)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError):
            rows = None
        if files.writes_caches():
            with contextlib.suppress(StorageError, OSError):  # then it is moved over next time
                if rows is not None:
                    self.append(rows)
                former.file.unlink()
        return rows


class Appender:
    """Gathers rows and appends them to a table every few seconds, so that a kill loses seconds.

    Args:
        table: Where to.
        seconds: How long rows are gathered at most, while more come.
        rows: How many are gathered at most.
    """

    def __init__(self, table: TableFolder, seconds: float = 5.0, rows: int = 200_000) -> None:
        self._table, self._seconds, self._most = table, seconds, rows
        self._rows: list[tuple[Any, ...]] = []
        self._began = time.monotonic()
        self._written: list[pa.Table] = []

    @property
    def waiting(self) -> list[tuple[Any, ...]]:
        """The rows that are not yet on disk."""
        return self._rows

    def take_written(self) -> list[pa.Table]:
        """What was appended since this was last asked for."""
        written, self._written = self._written, []
        return written

    def add(self, *row: Any) -> None:
        """Add a row: its columns in the order of the table's.

        Raises:
            StorageError: The disk is full or the folder cannot be written.
        """
        self._rows.append(row)
        late = time.monotonic() - self._began > self._seconds
        if late or len(self._rows) >= self._most:
            self.flush()

    def flush(self) -> None:
        """Append what is gathered.

        Raises:
            StorageError: The disk is full or the folder cannot be written.
        """
        rows, self._rows, self._began = self._rows, [], time.monotonic()
        if rows:
            table = rows_of(self._table.schema, rows[::-1])  # the newest first, as `read` has them
            self._written.append(table)
            self._table.append(table)


def rows_of(schema: pa.Schema, rows: Sequence[Sequence[Any]]) -> pa.Table:
    """A table of rows that are Python values, in the order of the columns."""
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(schema)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def _write(folder: Path, rows: pa.Table) -> Path:
    """Write a segment under the name that its bytes give it."""
    named: list[str] = []

    def name_of(file: Path) -> str:
        total, size = _sum_of(file)
        who = current_process().token
        named.append(f"seg-{time.time_ns():020d}-{who}-{total:08x}-{size}.arrow")
        return named[0]

    with (
        files.new_file(folder, name_of) as partial,
        pa.OSFile(str(partial), "wb") as sink,
        pa.ipc.new_file(sink, rows.schema) as writer,
    ):
        writer.write_table(rows.combine_chunks())
    return folder / named[0]


def _open(file: Path, schema: pa.Schema) -> pa.Table | None:
    """A segment, mapped; None where it is gone, damaged, or of another version."""
    told = _SEGMENT.fullmatch(file.name)
    assert told is not None  # noqa: S101 - only such files are listed
    try:
        if _sum_of(file) != (int(told[1], 16), int(told[2])):
            return None
        table = pa.ipc.open_file(pa.memory_map(str(file), "r")).read_all()
    except (OSError, pa.ArrowException):
        return None
    is_ours = (table.schema.metadata or {}).get(_ABOUT) == schema.metadata[_ABOUT]
    return table if is_ours and table.schema.equals(schema) else None


def newest_rows(keys: pa.Array, column: pa.ChunkedArray) -> np.ndarray:
    """[keys]: the first row in which a column has each key; -1 where none has."""
    if column.num_chunks and len(column.chunk(0)) == len(keys) and column.chunk(0).equals(keys):
        return np.arange(len(keys))
    found = pc.index_in(keys, value_set=column.combine_chunks())
    rows: np.ndarray = pc.fill_null(found, -1).to_numpy().astype(np.int64)
    return rows


def take_rows(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """The rows of a table at some places; mapped columns stay mapped where all are in order."""
    count = len(rows)
    if count and rows[0] + count - 1 == rows[-1] and (np.diff(rows) == 1).all():
        return table.slice(int(rows[0]), count).combine_chunks()
    return table.combine_chunks().take(pa.array(rows))


def _unlink(file: Path) -> None:
    with contextlib.suppress(OSError):  # Windows removes none that is mapped; the next reader does
        file.unlink()


def _sum_of(file: Path) -> tuple[int, int]:
    """The CRC-32 and the length of a file's bytes."""
    total = size = 0
    with file.open("rb") as handle:
        while part := handle.read(_READ_AT_ONCE):
            total, size = zlib.crc32(part, total), size + len(part)
    return total, size
