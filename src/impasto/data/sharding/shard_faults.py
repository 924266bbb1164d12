"""Finds faults of shards, and makes the errors that readers of shards raise."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from impasto.data.sharding.shard_files import BadShard
from impasto.data.sharding.shard_store import ShardFiles, tensors_of
from impasto.errors import DatasetError
from impasto.remote_paths import shown


def fault_of(index: Path, files: ShardFiles) -> BadShard | None:
    """Read a whole shard and return its fault (hash, header, non-finite values), or None."""
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
    """Check that this version can read a shard's format.

    Raises:
        DatasetError: The shard was written by a newer version.
    """
    if version > readable:
        raise DatasetError(
            f"The {what} {folder} was written by a newer Impasto (format {version}; this version "
            f"reads up to {readable}). Update Impasto or delete the folder."
        )


def changed_shard(tensors: Path, what: str, then: str) -> DatasetError:
    """Make the error for a shard that changed since it was written; `then` is the way forward."""
    return DatasetError(
        f"{shown(tensors)} of the {what} has changed since it was written, perhaps by a "
        f"failing disk. {then}"
    )


def lost_shard(tensors: Path, what: str, error: Exception) -> DatasetError:
    """Make the error for a shard that was removed or damaged while it was read."""
    return DatasetError(
        f"{shown(tensors)} of the {what} was removed or damaged while it was in use ({error}). "
        f"Its content is encoded again when it is needed."
    )
