"""Locates the columns of a shard in its file, so that rows can be read by ranges of bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from impasto.data.sharding.shard_store import have_shape
from impasto.errors import DatasetError
from impasto.parsing import parse_json
from impasto.remote_paths import shown
from impasto.storage import objects

HEADER_BYTES = 1 << 12
"""Bytes that are read first of a file: the headers of shards have a few hundred bytes."""

_LONGEST_HEADER = 1 << 20
_TYPES = {"F16": np.float16, "F32": np.float32, "U8": np.uint8}


@dataclass(frozen=True)
class StoredColumn:
    """The place of a column in a file of tensors.

    Attributes:
        dtype: Its dtype.
        shape: The shape of all rows.
        begin: The offset of its first byte in the file.
    """

    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    begin: int

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.dtype.itemsize * math.prod(self.shape[1:])

    def row(self, content: bytes) -> np.ndarray:
        """Return a row as an array over its bytes."""
        return np.frombuffer(content, self.dtype).reshape(self.shape[1:])


def columns_of(
    tensors: Path, beginning: bytes, names: Sequence[str], size: int
) -> tuple[StoredColumn, ...]:
    """Locate the columns of a shard in its file.

    Format: https://huggingface.co/docs/safetensors, "Format".

    Args:
        tensors: The file, in an object store.
        beginning: Its first `HEADER_BYTES`.
        names: The columns.
        size: Size of the file in bytes.

    Raises:
        DatasetError: The file is not a shard, or is damaged.
        OSError: The rest of its header cannot be read.
        StorageError: The store cannot be used.
    """
    length = int.from_bytes(beginning[:8], "little")
    try:
        if not 0 < length <= _LONGEST_HEADER:
            raise ValueError
        if len(beginning) < 8 + length:
            beginning = objects.read(tensors, 0, 8 + length)
        header = parse_json(beginning[8 : 8 + length])
        columns = tuple(_column(header[name], 8 + length) for name in names)
        ends = [column.begin + column.row_bytes * column.shape[0] for column in columns]
        shapes = [column.shape for column in columns]
        if max(ends) > size or not have_shape(tensors.name, shapes, shapes[0][0]):
            raise ValueError
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise DatasetError(
            f"{shown(tensors)} is damaged, or not a shard. impasto dataset cache verify SOURCE "
            f"--remove removes it; its entries are then encoded again."
        ) from error
    return columns


def _column(told: dict[str, list[int]], data: int) -> StoredColumn:
    """Return a column from its header entry; `data` is the offset at which the header ends."""
    kind: object = told["dtype"]
    dtype: np.dtype[np.generic] = np.dtype(_TYPES[str(kind)])
    return StoredColumn(dtype, tuple(map(int, told["shape"])), data + int(told["data_offsets"][0]))
