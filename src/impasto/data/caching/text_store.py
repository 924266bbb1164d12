"""The text store: a frozen text encoder's states on disk, by token ids and encoder fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from impasto.data.engines.process_group import wait_until_seen
from impasto.data.sharding.shard_files import BadShard
from impasto.data.sharding.shards import Shards

TEXTS = "texts"
"""Name of the folder of text encoder outputs within the derived data."""


class TextStore:
    """The states of chunks of token ids.

    Args:
        folder: The folder of the shards; created on the first write.
        fingerprint: A hash of all that the states depend on besides the ids: the encoder's
            weights, and which of its layers is used.
        dtype: Stored dtype.
    """

    shard_entries = 256

    def __init__(self, folder: Path, fingerprint: str, dtype: torch.dtype = torch.float32) -> None:
        self._shards = Shards(folder, ("states",), "text store")
        self._fingerprint = f"{fingerprint}:{dtype}"
        self._dtype = dtype
        self._is_swept = False

    def __contains__(self, ids: tuple[int, ...]) -> bool:
        return self.key(ids) in self._shards

    def __len__(self) -> int:
        return len(self._shards)

    def refresh(self) -> None:
        """Add the shards that another process has written to the index."""
        self._shards.refresh()

    @property
    def number_of_shards(self) -> int:
        """The number of shards, of all encoders."""
        return len(self._shards.indices())

    def verify(self, *, remove: bool) -> Iterator[BadShard | None]:
        """Read each shard in full and yield its fault, or None; bad ones are deleted if `remove`.

        A shard that the disk cannot read is kept: it may be readable another time.
        """
        return self._shards.verify(remove=remove)

    def remove_orphans(self) -> int:
        """Remove tensors that no index refers to, and return the bytes freed.

        Raises:
            StorageError: The store is in an object store that cannot be used.
        """
        return self._shards.remove_orphans()

    def require_seen(
        self, chunks: Sequence[tuple[int, ...]], raise_fault: Callable[[], None]
    ) -> None:
        """Wait until chunks written by other processes are visible to this one.

        Args:
            chunks: The chunks.
            raise_fault: Raises if another process has failed.

        Raises:
            StorageError: They are not visible after two minutes.
        """

        def left() -> int:
            self.refresh()
            return sum(ids not in self for ids in chunks)

        wait_until_seen(left, self._shards.folder, raise_fault)

    def key(self, ids: Sequence[int]) -> str:
        """Return the key of a chunk's states: a hash in 32 hex digits."""
        digest = hashlib.sha256(self._fingerprint.encode("utf-8"))
        digest.update(np.asarray(ids, dtype="<i4").tobytes())  # the same bytes on every machine
        return digest.hexdigest()[:32]

    def read(self, ids: Sequence[int]) -> Tensor:
        """Return the states of a chunk, `[77, D]` in float32.

        Raises:
            KeyError: The chunk is not in the store.
        """
        (rows,) = self._shards.read([self.key(ids)])
        return torch.from_numpy(rows[0]).float()

    def write(self, chunks: Sequence[Sequence[int]], states: Tensor) -> None:
        """Add states `[chunks, 77, D]` as a shard; the first call removes killed processes' files.

        Raises:
            StorageError: The disk is full or the folder cannot be written.
        """
        if not self._is_swept:
            self._shards.remove_leftovers()
            self._is_swept = True
        keys = [self.key(ids) for ids in chunks]
        self._shards.write("text", keys, {"states": states.to(self._dtype)})
        self._shards.keep_index()
