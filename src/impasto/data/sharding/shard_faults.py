"""What may be wrong with shards, as a value of who checks them or an error of who reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from impasto.data.sharding.shard_files import BadShard
from impasto.data.sharding.shard_store import ShardFiles, tensors_of
from impasto.errors import DatasetError
from impasto.remote_paths import shown


def fault_of(index: Path, files: ShardFiles) -> BadShard | None:
    """Read a shard whole, and say what is wrong: hash, header, values that are not finite."""
    tensors = tensors_of(index)
    try:
        stored = files.described(index)
        if stored is None:
            return BadShard(index, "its index cannot be read", 0)
        columns = files.verified(index, len(stored.keys), stored.sha256)
    except OSError as error:
        return BadShard(index, f"cannot be read ({error.strerror or error})", 0, is_unread=True)
    if isinstance(columns, str):
        return BadShard(tensors, columns, len(stored.keys))
    if not all(np.isfinite(column).all() for column in columns):
        return BadShard(tensors, "holds NaN or infinite values", len(stored.keys))
    return None


def require_format(version: int, readable: int, folder: Path, what: str) -> None:
    """Make sure that a shard can be read.

    Raises:
        DatasetError: It was written by a newer version.
    """
    if version > readable:
        raise DatasetError(
            f"The {what} {folder} was written by a newer Impasto (format {version}; this one reads "
            f"up to {readable}). Update Impasto or delete the folder."
        )


def changed_shard(tensors: Path, what: str, then: str) -> DatasetError:
    """The error of a shard that is not what was written, with what becomes of it."""
    return DatasetError(
        f"{shown(tensors)} of the {what} has changed since it was written, as by a failing disk. "
        f"{then}"
    )


def lost_shard(tensors: Path, what: str, error: Exception) -> DatasetError:
    """The error of a shard that went while it was read."""
    return DatasetError(
        f"{shown(tensors)} of the {what} was removed or damaged while it was in use ({error}). "
        f"What it held is encoded anew when it is needed."
    )
