"""Tables on disk that grow while work is done: a folder of Arrow files with the same columns.

A table is a folder of segments (`segments.py`), each an Arrow IPC file that appears whole by one
rename and never changes, so readers and any number of writers need no lock, on network disks too.
A damaged segment is ignored. Columns are memory-mapped, so the processes of a machine share them.

If a key has several rows, the newest is valid. `rewrite` merges many segments into one. The
replaced segments are ignored from then on, and removed an hour later: on a network disk, removing
a file takes its bytes away from processes of other machines that have it mapped.

Format: https://arrow.apache.org/docs/format/Columnar.html, "IPC File Format", uncompressed.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from impasto import files, presence, temporary_names
from impasto.data.columns.arrow_columns import (
    FEW,
    column_of,
    empty_table,
    few_of,
    fitted,
    number_column,
    texts_of,
    values_of,
)
from impasto.data.columns.remembered import recall
from impasto.data.columns.segments import (
    open_segment,
    remove_segment,
    replaced_by,
    saying_replaced,
    segments_in,
    write_segment,
)
from impasto.errors import StorageError
from impasto.remote_paths import machine_folder

_ABOUT = b"impasto"
MANY_SEGMENTS = 8
REMOVED_AFTER_NS = 3600 * 10**9
"""Nanoseconds after which a replaced segment is removed."""
_LOOKS = 10


@dataclass(frozen=True)
class FormerFile:
    """The JSON file of earlier versions that a table replaces.

    Attributes:
        file: The file; it is read once, and then removed.
        version: The version its content must have.
        convert: Converts its content to rows; invalid content may raise any of the usual errors.
    """

    file: Path
    version: list[Any]
    convert: Callable[[Any], pa.Table]


class TableFolder:
    """A table on disk.

    Args:
        folder: The folder of its segments; created on the first write. None stores nothing.
        schema: The columns.
        version: The version of the rows, such as a format and a folder; rows of others are ignored.
        former: The JSON file of earlier versions to convert.

    Raises:
        StorageError: The folder is a link: a dataset from an untrusted source could link to the
            tables of another one, which would then be rewritten.
    """

    def __init__(
        self,
        folder: Path | None,
        schema: pa.Schema,
        version: Sequence[Any],
        former: FormerFile | None = None,
    ) -> None:
        if folder is not None and presence.is_link(folder):
            raise StorageError(
                f"{folder} is a link, and data derived from images is neither read nor written "
                f"through links of this name. Remove the link; the data will be made again."
            )
        self.folder, self._former = folder, former
        about = json.dumps(list(version), ensure_ascii=False).encode("utf-8", "surrogatepass")
        self.schema = schema.with_metadata({_ABOUT: about})
        self._known: list[str] = []
        self._replaced: dict[str, int] = {}
        self._is_swept = False

    def is_untidy(self, rows: int, useful: int) -> bool:
        """Return whether the table should be rewritten, for its many segments or useless rows.

        Args:
            rows: Number of rows in the table.
            useful: Number of rows that are the newest of their key.
        """
        if self.folder is None:
            return False
        return len(self._known) > MANY_SEGMENTS or rows - useful > rows // 8

    def read(self) -> pa.Table:
        """Return all rows, those of the newest segment first; columns are mapped, not read.

        Damaged segments, and those of another version, are ignored.
        """
        found = [table.replace_schema_metadata(self.schema.metadata) for table in self._open_all()]
        former = self._move_over()
        if former is not None:
            found.append(former)
        return pa.concat_tables([*found, empty_table(self.schema)])

    def newest(self) -> pa.Table | None:
        """Return the newest intact segment, with the metadata from `replace_all`; None if none."""
        return next(iter(self._open_all()), None)

    def appended_since(self) -> list[pa.Table] | None:
        """Return what other programs have appended since the last read, the newest first.

        None if segments were replaced meanwhile: `read` then has fewer rows.

        Raises:
            StorageError: The folder is in an object store that cannot be used.
        """
        found: dict[str, pa.Table | None] = {}
        for file in segments_in(self.folder):
            if file.name in self._known or file.name in self._replaced:
                continue
            try:
                table = found[file.name] = self._own(open_segment(file))
            except OSError:  # retried at the next call
                continue
            if table is not None and replaced_by(table, file.name):
                return None
        self._known = sorted([*self._known, *found])
        tables = (found[name] for name in sorted(found, reverse=True))
        return [
            table.replace_schema_metadata(self.schema.metadata)
            for table in tables
            if table is not None
        ]

    def append(self, rows: pa.Table) -> str | None:
        """Add rows as a durable segment; return its name, or None within `files.dry_run`.

        Raises:
            StorageError: The disk is full or the folder cannot be written.
        """
        if self.folder is None or not len(rows) or not files.writes_caches():
            return None
        name = self._write(self.folder, fitted(rows, self.schema))
        self._known.append(name)
        return name

    def fold(self, names: Collection[str], rows: pa.Table) -> None:
        """Replace some appended segments by one, if none of them has been replaced already.

        Raises:
            StorageError: The disk is full or the folder cannot be written.
        """
        if self.folder is not None and set(names) <= set(self._known):
            self._replace(self.folder, names, rows, {})

    def rewrite(self, rows: pa.Table) -> pa.Table:
        """Replace all segments that were read by one; return it, mapped.

        Segments that other processes have appended meanwhile stay, as do unreadable ones.

        Raises:
            StorageError: The disk is full or the folder cannot be written; nothing has changed.
        """
        if self.folder is None or not files.writes_caches() or not (self._known or len(rows)):
            return rows
        name = self._replace(self.folder, self._known, rows, {})
        return self._mapped(self.folder / name, rows)

    def replace_all(self, rows: pa.Table, about: Mapping[bytes, bytes] | None = None) -> pa.Table:
        """Replace all segments in the folder by one, whether read or not; return it, mapped.

        Args:
            rows: All rows of the table.
            about: Additional metadata, which `newest` returns.

        Raises:
            StorageError: The disk is full or the folder cannot be written; nothing has changed.
        """
        if self.folder is None or not files.writes_caches():
            return rows
        there = [file.name for file in segments_in(self.folder)]
        name = self._replace(self.folder, there, rows, about or {})
        return self._mapped(self.folder / name, rows)

    def _open_all(self) -> list[pa.Table]:
        """Return the valid segments of this version, the newest first.

        The folder is listed again if a segment disappears meanwhile, as it was replaced.
        """
        opened: dict[str, pa.Table | None] = {}
        replaced: dict[str, int] = {}
        there: list[Path] = []
        for _ in range(_LOOKS):
            there, has_gone = segments_in(self.folder), False
            for file in reversed(there):
                if file.name in opened or file.name in replaced:
                    continue
                try:
                    table = opened[file.name] = self._own(open_segment(file))
                except FileNotFoundError:
                    has_gone = True
                except OSError:  # it may be intact, so it is kept
                    continue
                else:
                    for name, since in (
                        () if table is None else replaced_by(table, file.name).items()
                    ):
                        replaced[name] = min(since, replaced.get(name, since))
            if not has_gone:
                break
        names = {file.name for file in there}
        self._replaced = {name: since for name, since in replaced.items() if name in names}
        self._known = sorted(opened.keys() - replaced.keys())
        self._remove_replaced()
        tables = (opened[name] for name in reversed(self._known))
        return [table for table in tables if table is not None]

    def _own(self, table: pa.Table | None) -> pa.Table | None:
        """Return a segment if it is of this version, or else None."""
        if (
            table is None
            or (table.schema.metadata or {}).get(_ABOUT) != self.schema.metadata[_ABOUT]
        ):
            return None
        return table if table.schema.equals(self.schema) else None

    def _mapped(self, file: Path, rows: pa.Table) -> pa.Table:
        """Return the segment just written, mapped; the rows in RAM if it cannot be read."""
        with contextlib.suppress(OSError):
            table = self._own(open_segment(file))
            if table is not None:
                return table.replace_schema_metadata(self.schema.metadata)
        return rows

    def _replace(
        self, folder: Path, names: Collection[str], rows: pa.Table, about: Mapping[bytes, bytes]
    ) -> str:
        """Write a segment that replaces others, and those that they replaced; return its name."""
        replaced = dict.fromkeys(names, time.time_ns()) | self._replaced
        told = {**self.schema.metadata, **saying_replaced(replaced), **about}
        name = self._write(folder, fitted(rows, self.schema).replace_schema_metadata(told))
        self._replaced = replaced
        self._known = [*(own for own in self._known if own not in replaced), name]
        self._remove_replaced()
        return name

    def _write(self, folder: Path, rows: pa.Table) -> str:
        if not self._is_swept:
            temporary_names.remove_leftovers(machine_folder(folder))
            self._is_swept = True
        return write_segment(folder, rows)

    def _remove_replaced(self) -> None:
        """Remove segments that were replaced more than an hour ago."""
        if self.folder is None or not files.writes_caches():
            return
        for name, since in list(self._replaced.items()):
            if time.time_ns() - since > REMOVED_AFTER_NS:
                # Windows cannot remove a mapped file; a store may not permit removal
                with contextlib.suppress(OSError, StorageError):
                    remove_segment(self.folder / name)
                    del self._replaced[name]

    def _move_over(self) -> pa.Table | None:
        """Return the rows of the JSON file of earlier versions, and remove it once they are stored.

        An unreadable file is kept: it may be of another version, or readable later.
        """
        former = self._former
        if former is None or not former.file.is_file():
            return None
        content = recall(former.file, former.version)
        try:
            rows = None if content is None else fitted(former.convert(content), self.schema)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError):
            rows = None
        if rows is not None and files.writes_caches():
            with contextlib.suppress(StorageError, OSError):  # the next start tries again
                self.append(rows)
                former.file.unlink()
        return rows


def rows_of(schema: pa.Schema, rows: Sequence[Sequence[Any]]) -> pa.Table:
    """Return a table of rows of Python values, in the order of the columns."""
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(schema)
    arrays = [column_of(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def newest_rows(keys: pa.Array, column: pa.ChunkedArray) -> np.ndarray:
    """Return [keys]: the first row in which a column has each key; -1 if none has."""
    if column.num_chunks and len(column.chunk(0)) == len(keys) and column.chunk(0).equals(keys):
        return np.arange(len(keys))
    if len(keys) + len(column) < FEW:
        first: dict[str, int] = {}
        for row, text in enumerate(texts_of(column)):
            first.setdefault(text, row)
        return np.array([first.get(key, -1) for key in texts_of(keys)], dtype=np.int64)
    import pyarrow.compute as pc  # 0.05 s, which would slow down small tables

    found = pc.index_in(keys, value_set=column.combine_chunks())
    return values_of(pc.fill_null(found, -1)).astype(np.int64)


def take_rows(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """Return the rows of a table at some indices; a run of successive rows stays mapped."""
    count = len(rows)
    if count and rows[0] + count - 1 == rows[-1] and (np.diff(rows) == 1).all():
        return table.slice(int(rows[0]), count).combine_chunks()
    if count < FEW:
        return few_of(table, rows)
    return table.combine_chunks().take(number_column(rows))
