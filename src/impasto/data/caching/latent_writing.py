"""Writes moments and masks to the latent cache, shard by shard."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from impasto.background import BackgroundWriter
from impasto.data.caching.latent_cache import LatentCache
from impasto.data.records import Size
from impasto.data.sharding.shard_files import SHARD_BYTES

SHARD_SECONDS = 30.0  # a kill loses no more than twice this, however slow the encoder
_NO_VARIANCE = -30.0  # the lower limit of the log variance in diffusers' posterior


class _Gathering:
    """Collects the entries of one bucket after another and writes them as shards.

    Args:
        write: Writes a shard: its bucket, its keys, and a column [N, ...] per tensor of an entry.
        behind: The background thread that calls `write`.
    """

    def __init__(self, write: Callable[..., None], behind: BackgroundWriter) -> None:
        self._write, self._behind = write, behind
        self._bucket = Size(0, 0)
        self._keys: list[str] = []
        self._entries: list[tuple[Tensor, ...]] = []
        self._bytes = 0
        self._began = time.monotonic()

    def add(self, bucket: Size, key: str, *entry: Tensor) -> None:
        if bucket != self._bucket:
            self.hand_on()
            self._bucket = bucket
        self._keys.append(key)
        self._entries.append(entry)
        self._bytes += sum(tensor.numel() * min(2, tensor.element_size()) for tensor in entry)
        if self._bytes >= SHARD_BYTES or time.monotonic() - self._began > SHARD_SECONDS:
            self.hand_on()

    def hand_on(self) -> None:
        """Write the collected shard in the background, once the one before it is written."""
        if self._keys:
            self._behind.wait()
            bucket, keys, entries = self._bucket, self._keys, self._entries
            self._behind.submit(
                lambda: self._write(bucket, keys, *map(torch.stack, zip(*entries, strict=True)))
            )
        self._keys, self._entries, self._bytes = [], [], 0
        self._began = time.monotonic()


@contextlib.contextmanager
def shard_writer(cache: LatentCache) -> Iterator[ShardWriter]:
    """Provide a writer for a cache; a thread writes each shard while the next is collected.

    When the context exits, the rest is written; after an error, only shards already begun.

    Raises:
        StorageError: The disk is full or the folder cannot be written; from any method of the
            writer, and from the end of the context.
    """
    behind = BackgroundWriter()
    try:
        writer = ShardWriter(cache, behind)
        yield writer
        writer.finish()
        behind.wait()
    finally:
        behind.close()


class ShardWriter:
    """Collects moments and masks into shards of one bucket each.

    Args:
        cache: The cache to write to.
        behind: The background thread that writes.
    """

    def __init__(self, cache: LatentCache, behind: BackgroundWriter) -> None:
        self._moments = _Gathering(cache.write_shard, behind)
        self._masks = _Gathering(cache.write_masks, behind)

    def finish(self) -> None:
        """Write the collected entries as last shards, however small."""
        self._moments.hand_on()
        self._masks.hand_on()

    def add(self, bucket: Size, key: str, mean: Tensor, logvar: Tensor) -> None:
        """Add one image's moments, [4, h, w] each, in RAM."""
        self._moments.add(bucket, key, mean, logvar)

    def add_latents(self, bucket: Size, key: str, latents: Tensor) -> None:
        """Add a latent sample, [4, h, w], as moments: the mean, with the least variance."""
        self.add(bucket, key, latents, torch.full_like(latents, _NO_VARIANCE))

    def add_mask(self, bucket: Size, key: str, mask: Tensor) -> None:
        """Add one image's mask, [h, w] uint8."""
        self._masks.add(bucket, key, mask[None])
