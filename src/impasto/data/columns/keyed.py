"""A table on disk of values by key, caching facts about files: hashes, looks, decode results."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from impasto.data.columns.appender import Appender
from impasto.data.columns.arrow_columns import FEW, list_of, text_column, texts_of, values_of
from impasto.data.columns.tables import FormerFile, TableFolder, take_rows


class KeyedTable:
    """Rows with a text key in the first column; the newest row of a key is valid.

    Only rows added in the last seconds are in RAM. A look-up scans the whole column of keys, half a
    second for ten million rows, so look up many keys at once.

    Args:
        file: The JSON file of earlier versions; the table has the extension `.table` instead. None
            holds the rows in RAM only.
        schema: The columns.
        version: The version of the rows; rows of others are ignored.
        former: The version of the JSON file, and the conversion of its content to rows.
    """

    def __init__(
        self, file: Path | None, schema: pa.Schema, version: list[Any], former: FormerFile | None
    ) -> None:
        folder = None if file is None else file.with_suffix(".table")
        self._table = TableFolder(folder, schema, version, former)
        self._rows: pa.Table = self._table.read()
        self._appender = Appender(self._table)
        self._key = schema.names[0]
        self._has_grown = False

    def look_up(self, keys: Collection[str]) -> dict[str, tuple[Any, ...]]:
        """Return key -> values without the key, for the given keys that are known."""
        self._take_in_written()
        wanted = set(keys)
        found = {row[0]: row[1:] for row in self._appender.waiting if row[0] in wanted}
        return self._values(self._rows, wanted - found.keys()) | found

    def look_up_new(self, keys: Collection[str]) -> dict[str, tuple[Any, ...]]:
        """Read the rows that other programs have appended since, and look up keys in these only.

        Only new segments are read, so this may be called every few seconds. If segments were
        replaced meanwhile, all rows are read.

        Raises:
            StorageError: The table is in an object store that cannot be used.
        """
        self._take_in_written()
        new = self._table.appended_since()
        if new is None:
            self.refresh()
            return self.look_up(keys)
        self._rows = pa.concat_tables([*new, self._rows])
        return self._values(pa.concat_tables(new), set(keys)) if new else {}

    def _take_in_written(self) -> None:
        recent = self._appender.take_written()
        if recent:
            self._rows = pa.concat_tables([*recent[::-1], self._rows])

    def _values(self, table: pa.Table, keys: Collection[str]) -> dict[str, tuple[Any, ...]]:
        """Return key -> values without the key, for the given keys that are in a table."""
        found: dict[str, tuple[Any, ...]] = {}
        for key, *values in zip(
            *map(list_of, self._picked(table, keys).itercolumns()), strict=True
        ):
            found.setdefault(key, tuple(values))
        return found

    def _picked(self, table: pa.Table, keys: Collection[str]) -> pa.Table:
        """Return the rows of some keys, possibly several per key; of others only keys are read."""
        column = table.column(self._key)
        if len(column) < FEW:
            rows = [row for row, key in enumerate(texts_of(column)) if key in keys]
            return take_rows(table, np.array(rows, dtype=np.int64))
        import pyarrow.compute as pc  # 0.05 s, which would slow down small tables

        mask = pc.is_in(column, value_set=text_column(list(keys)))
        return table if pc.all(mask).as_py() else table.filter(mask)

    def refresh(self) -> None:
        """Read all rows again, including those that other processes have written."""
        self._appender.take_written()
        self._rows = self._table.read()

    def add(self, key: str, *values: Any) -> None:
        """Add a row; it is on disk within seconds while more are added.

        Raises:
            StorageError: It could not be written.
        """
        self._has_grown = True
        self._appender.add(key, *values)

    def flush(self) -> None:
        """Write the rows that are not yet on disk.

        Raises:
            StorageError: They could not be written.
        """
        self._appender.flush()

    def finish(self) -> None:
        """Write the rows that are not yet on disk, and merge segments if there are many.

        Raises:
            StorageError: They could not be written.
        """
        self.flush()
        self._take_in_written()
        if self._has_grown and self._table.is_untidy(len(self._rows), self._different()):
            self._tidy()

    def _different(self) -> int:
        """Return the number of distinct keys."""
        column = self._rows.column(self._key)
        if len(column) < FEW:
            return len(set(texts_of(column)))
        import pyarrow.compute as pc  # 0.05 s, which would slow down small tables

        count: int = pc.count_distinct(column).as_py()
        return count

    def _tidy(self) -> None:
        """Rewrite the table as one segment with the newest row of each key."""
        codes = self._rows.column(self._key).combine_chunks().dictionary_encode().indices
        newest = np.sort(np.unique(values_of(codes), return_index=True)[1])
        self._rows = self._table.rewrite(take_rows(self._rows, newest))
