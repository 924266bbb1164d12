"""Collects rows during work, and appends them to a table on disk every few seconds.

A kill loses the rows collected since. Each append is a segment of the table (`tables.py`); many
segments are merged into one.
"""

from __future__ import annotations

import time
from typing import Any

import pyarrow as pa

from impasto.data.columns.tables import TableFolder, rows_of

FOLDED = 64
"""Number of segments that an `Appender` writes before it merges them."""


class Appender:
    """Collects rows and appends them to a table every few seconds, so that a kill loses seconds.

    Args:
        table: The table to append to.
        seconds: Maximum time for which rows are collected, while more are added.
        rows: Maximum number of rows collected.
    """

    def __init__(self, table: TableFolder, seconds: float = 5.0, rows: int = 200_000) -> None:
        self._table, self._seconds, self._most = table, seconds, rows
        self._rows: list[tuple[Any, ...]] = []
        self._began = time.monotonic()
        self._written: list[pa.Table] = []
        self._small: dict[str, pa.Table] = {}

    @property
    def waiting(self) -> list[tuple[Any, ...]]:
        """The rows that are not yet on disk."""
        return self._rows

    def take_written(self) -> list[pa.Table]:
        """Return the tables appended since the last call, in order."""
        written, self._written = self._written, []
        return written

    def add(self, *row: Any) -> None:
        """Add a row: its values in the order of the table's columns.

        Raises:
            StorageError: The disk is full or the folder cannot be written.
        """
        self._rows.append(row)
        late = time.monotonic() - self._began > self._seconds
        if late or len(self._rows) >= self._most:
            self.flush()

    def flush(self) -> None:
        """Append the collected rows.

        Raises:
            StorageError: The disk is full or the folder cannot be written.
        """
        rows, self._rows, self._began = self._rows, [], time.monotonic()
        if rows:
            table = rows_of(self._table.schema, rows[::-1])  # the newest first, as `read` has them
            self._written.append(table)
            name = self._table.append(table)
            if name is not None:
                self._small[name] = table
            if len(self._small) >= FOLDED:
                small, self._small = self._small, {}
                self._table.fold(small, pa.concat_tables(list(small.values())[::-1]))
