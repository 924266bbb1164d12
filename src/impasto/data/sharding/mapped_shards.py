"""Maps shards into memory; rows are compared with their CRC-32 when first read."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from impasto.data.sharding.shard_faults import lost_shard
from impasto.data.sharding.shard_files import sum_of_row
from impasto.data.sharding.shard_store import Arrays, ShardFiles, tensors_of

MAPPED_SHARDS = 4096
"""Shards that are mapped at a time: Linux limits a process to 65,530 mappings, files or not
(vm.max_map_count), and a shard takes up to two."""


@dataclass(frozen=True)
class ShardSource:
    """The place that rows of shards are read from.

    Attributes:
        files: The files of the shards.
        folder: Their folder.
        what: What the folder is called in messages.
        sum_of: Returns the CRC-32 of a row; None for shards of a version that wrote none.
    """

    files: ShardFiles
    folder: Path
    what: str
    sum_of: Callable[[str, int], int | None]


class MappedShards:
    """The shards that a process has mapped, by name.

    Args:
        source: The place that shards are read from.
    """

    def __init__(self, source: ShardSource) -> None:
        self._source = source
        self._open: OrderedDict[str, Arrays] = OrderedDict()
        self._opening = threading.Lock()
        self._compared: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, shard: str) -> bool:
        return shard in self._open

    def columns(self, shard: str) -> Arrays:
        """Return the mapped tensors of a shard, as arrays over the same memory.

        Raises:
            DatasetError: The shard is gone or damaged.
        """
        with self._opening:
            arrays = self._open.get(shard)
            if arrays is None:
                arrays = self._open[shard] = self._map(shard)
                while len(self._open) > MAPPED_SHARDS:
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(shard)
            return arrays

    def row(self, shard: str, row: int) -> Arrays:
        """Return a row of all columns.

        Raises:
            DatasetError: The shard is gone or damaged.
        """
        return tuple(column[row] for column in self.columns(shard))

    def is_unchanged(self, shard: str, row: int) -> bool:
        """Return whether a row matches its CRC-32, or has none; it is computed once.

        Raises:
            DatasetError: The shard is gone or damaged.
        """
        compared = self._compared.get(shard)
        if compared is not None and compared[row]:
            return True
        wanted = self._source.sum_of(shard, row)
        if wanted is None:  # written by a version without CRC-32
            return True
        arrays = self.columns(shard)
        if compared is None:
            compared = self._compared.setdefault(shard, np.zeros(len(arrays[0]), dtype=bool))
        compared[row] = sum_of_row(arrays, row) == wanted
        return bool(compared[row])

    def close(self, shard: str) -> None:
        """Unmap a shard, since Windows cannot replace or remove a mapped file."""
        self._open.pop(shard, None)
        self._compared.pop(shard, None)

    def _map(self, shard: str) -> Arrays:
        index = self._source.folder / f"{shard}.json"
        try:
            return self._source.files.map(index)
        except (SafetensorError, OSError) as error:
            raise lost_shard(tensors_of(index), self._source.what, error) from error
