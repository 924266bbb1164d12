"""The states of a frozen text encoder on disk, found by token ids and the encoder's fingerprint."""

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
"""The folder of derived data that text encoder outputs are in."""


class TextStore:
    """States of chunks of token ids.

    Args:
        folder: Where the shards are; created when something is written.
        fingerprint: A hash over all that the states depend on besides the ids: the encoder's
            weights and which of its layers is taken.
        dtype: Type on disk.
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
        """Take in what another process has added meanwhile."""
        self._shards.refresh()

    @property
    def number_of_shards(self) -> int:
        """The number of shards, of whatever encoder."""
        return len(self._shards.indices())

    def verify(self, *, remove: bool) -> Iterator[BadShard | None]:
        """Read each shard whole and yield what is wrong with it, or None; perhaps delete it.

        One that the disk does not give is left: another time it may.
        """
        return self._shards.verify(remove=remove)

    def remove_orphans(self) -> int:
        """Remove tensors that no process will find again, and return their bytes.

        Raises:
            StorageError: The store is in an object store that cannot be used.
        """
        return self._shards.remove_orphans()

    def require_seen(
        self, chunks: Sequence[tuple[int, ...]], raise_fault: Callable[[], None]
    ) -> None:
        """Wait until chunks that other processes have written are to be seen from here.

        Args:
            chunks: The chunks.
            raise_fault: Looks whether another process has failed.

        Raises:
            StorageError: They are not there after two minutes.
        """

        def left() -> int:
            self.refresh()
            return sum(ids not in self for ids in chunks)

        wait_until_seen(left, self._shards.folder, raise_fault)

    def key(self, ids: Sequence[int]) -> str:
        """The name of a chunk's states: a hash in 32 hex digits."""
        digest = hashlib.sha256(self._fingerprint.encode("utf-8"))
        digest.update(np.asarray(ids, dtype="<i4").tobytes())  # the same bytes on every machine
        return digest.hexdigest()[:32]

    def read(self, ids: Sequence[int]) -> Tensor:
        """States `[77, D]` in float32.

        Raises:
            KeyError: They are not there.
        """
        (rows,) = self._shards.read([self.key(ids)])
        return torch.from_numpy(rows[0]).float()

    def write(self, chunks: Sequence[Sequence[int]], states: Tensor) -> None:
        """Add states `[chunks, 77, D]` as a shard; the first removes what killed processes left.

        Raises:
            StorageError: The disk is full or the folder cannot be written.
        """
        if not self._is_swept:
            self._shards.remove_leftovers()
            self._is_swept = True
        keys = [self.key(ids) for ids in chunks]
        self._shards.write("text", keys, {"states": states.to(self._dtype)})
        self._shards.keep_index()
