"""What is remembered of things by a key, in a table on disk: hashes, looks, what was decoded."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from impasto.data.columns.appender import Appender
from impasto.data.columns.arrow_columns import FEW, list_of, text_column, texts_of, values_of
from impasto.data.columns.tables import Former, TableFolder, take_rows


class KeyedTable:
    """Rows by the text in their first column; of several rows of a key the newest counts.

    Nothing of it is in memory but what was added since the last seconds. Looking some keys up goes
    through the whole column, half a second for ten million rows, so many are looked up at once.

    Args:
        file: The JSON file of earlier versions; the table has `.table` for its ending. None keeps
            what is added until the object ends.
        schema: The columns.
        version: What rows belong to: others are not read.
        former: The version of the JSON file, and what makes rows of its content.
    """

    def __init__(
        self, file: Path | None, schema: pa.Schema, version: list[Any], former: Former | None
    ) -> None:
        folder = None if file is None else file.with_suffix(".table")
        self._table = TableFolder(folder, schema, version, former)
        self._rows: pa.Table = self._table.read()
        self._appender = Appender(self._table)
        self._key = schema.names[0]
        self._has_grown = False

    def look_up(self, keys: Collection[str]) -> dict[str, tuple[Any, ...]]:
        """The values of those of some keys that are known, without the key."""
        self._take_in_written()
        wanted = set(keys)
        found = {row[0]: row[1:] for row in self._appender.waiting if row[0] in wanted}
        return self._values(self._rows, wanted - found.keys()) | found

    def look_up_new(self, keys: Collection[str]) -> dict[str, tuple[Any, ...]]:
        """Take in what other programs have appended since the last look, and look keys up in it.

        Only what is new is read, so that one may look every few seconds.

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
        """The values of those of some keys that are in a table, without the key."""
        found: dict[str, tuple[Any, ...]] = {}
        for key, *values in zip(
            *map(list_of, self._picked(table, keys).itercolumns()), strict=True
        ):
            found.setdefault(key, tuple(values))
        return found

    def _picked(self, table: pa.Table, keys: Collection[str]) -> pa.Table:
        """The rows of some keys, perhaps several of a key; of other rows only the key is read."""
        column = table.column(self._key)
        if len(column) < FEW:
            rows = [row for row, key in enumerate(texts_of(column)) if key in keys]
            return take_rows(table, np.array(rows, dtype=np.int64))
        import pyarrow.compute as pc  # 0.05 s, which a small table has no use for

        mask = pc.is_in(column, value_set=text_column(list(keys)))
        return table if pc.all(mask).as_py() else table.filter(mask)

    def refresh(self) -> None:
        """Take in what other processes have written since the table was opened."""
        self._appender.take_written()
        self._rows = self._table.read()

    def add(self, key: str, *values: Any) -> None:
        """Remember a row; on disk it is within seconds while more are added.

        Raises:
            StorageError: It could not be written.
        """
        self._has_grown = True
        self._appender.add(key, *values)

    def flush(self) -> None:
        """Write what is not yet on disk.

        Raises:
            StorageError: It could not be written.
        """
        self._appender.flush()

    def finish(self) -> None:
        """Write what is not yet on disk, and make one file of many.

        Raises:
            StorageError: It could not be written.
        """
        self.flush()
        self._take_in_written()
        if self._has_grown and self._table.is_untidy(len(self._rows), self._different()):
            self._tidy()

    def _different(self) -> int:
        """How many different keys there are."""
        column = self._rows.column(self._key)
        if len(column) < FEW:
            return len(set(texts_of(column)))
        import pyarrow.compute as pc  # 0.05 s, which a small table has no use for

        count: int = pc.count_distinct(column).as_py()
        return count

    def _tidy(self) -> None:
        """Keep the newest row of each key, in one segment."""
        codes = self._rows.column(self._key).combine_chunks().dictionary_encode().indices
        newest = np.sort(np.unique(values_of(codes), return_index=True)[1])
        self._rows = self._table.rewrite(take_rows(self._rows, newest))
