"""Reads single rows of shards from an object store, without copying the shards, checked by CRC-32.

Used by `Shards`; shards in a folder on a disk are mapped instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from impasto.data.sharding.mapped_shards import ShardSource
from impasto.data.sharding.shard_files import sum_of_row
from impasto.data.sharding.shard_index import ShardRow
from impasto.data.sharding.shard_store import Arrays
from impasto.errors import DatasetError
from impasto.remote_paths import shown


class RowsApart:
    """Reads rows of shards that are not copied to this machine.

    Args:
        source: The place that shards are read from.
    """

    def __init__(self, source: ShardSource) -> None:
        self._source = source

    def read(self, shard_rows: Sequence[ShardRow]) -> dict[ShardRow, Arrays]:
        """Read single rows of shards that are not copied; each matches its CRC-32.

        Raises:
            DatasetError: A row does not match its CRC-32, even when read a second time.
        """
        rows, changed = self._read_twice(shard_rows)
        if changed:
            folder, what = shown(self._source.folder), self._source.what
            raise DatasetError(
                f"{folder}/{changed[0][0]}.safetensors of the {what} has "
                f"changed since it was written. impasto dataset cache verify SOURCE --remove "
                f"removes it; its entries are then encoded again."
            )
        return rows

    def unchanged(self, shard_rows: Sequence[ShardRow]) -> dict[ShardRow, Arrays]:
        """Read single rows of shards that are not copied, and leave out those that have changed.

        Raises:
            DatasetError: A row could not be read; it may still be intact.
        """
        rows, changed = self._read_twice(shard_rows)
        return {shard_row: row for shard_row, row in rows.items() if shard_row not in changed}

    def _read_twice(
        self, shard_rows: Sequence[ShardRow]
    ) -> tuple[dict[ShardRow, Arrays], list[ShardRow]]:
        """Return rows, and those that fail their CRC-32; failing rows are first read once more."""
        try:
            rows = self._source.files.rows_apart(shard_rows)
            changed = self._changed(rows)
            again = self._source.files.rows_apart(changed)
        except OSError as error:
            raise DatasetError(
                f"A row of the {self._source.what} {shown(self._source.folder)} could not be read "
                f"({error.strerror or error}). Its content is encoded again when it is needed."
            ) from error
        kept = {shard_row: row for shard_row, row in rows.items() if shard_row not in changed}
        return kept | again, self._changed(again)

    def _changed(self, rows: Mapping[ShardRow, Arrays]) -> list[ShardRow]:
        return [
            shard_row for shard_row, row in rows.items() if not self._is_as_written(shard_row, row)
        ]

    def _is_as_written(self, shard_row: ShardRow, row: Arrays) -> bool:
        wanted = self._source.sum_of(*shard_row)
        return wanted is None or sum_of_row([column[None] for column in row], 0) == wanted
