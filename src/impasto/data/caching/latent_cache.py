"""The latent cache on disk: shards of VAE moments, keyed by content, so that no stale one is found.

A shard (`data/sharding/shards.py`) holds images of one bucket: `mean` and `logvar`, both [N, 4, h,
w], or in the folder of masks `mask`, [N, 1, h, w]. Any number of resolutions, VAEs and datasets
may share a folder.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from impasto import locks, storage_errors
from impasto.data.caching.latent_keys import KeyTable
from impasto.data.caching.latent_keys import LatentKeys as LatentKeys
from impasto.data.pixels import images
from impasto.data.pixels.content_hashes import HASHES_FILE, ContentHashes
from impasto.data.pixels.decoded import DecodeCache
from impasto.data.planning.planned_table import PlannedTable
from impasto.data.record_table import RecordTable
from impasto.data.records import PlannedImage, Size, SkippedFile
from impasto.data.sharding.key_set import KeySet
from impasto.data.sharding.shard_files import BadShard
from impasto.data.sharding.shards import Shards
from impasto.errors import DatasetError
from impasto.lock_file import LockHolder
from impasto.remote_paths import is_remote, machine_folder, shown

STORED_DTYPE = torch.float16


@dataclass(frozen=True)
class CachedPlan:
    """Planned images with the keys of their latents, and the images that could not be encoded.

    Attributes:
        images: The images that can be trained on.
        keys: The cache keys of each image.
        skipped: Images that could not be decoded or encoded.
        encoded: Number of images encoded in this run.
        refused: Latent files of sd-scripts that do not fit their images; the VAE encoded these
            images instead.
        identities: The keys as exact arithmetic would have them: training states are compared by
            these, so that a run can resume on another device. Empty means `keys`.
    """

    images: Sequence[PlannedImage]
    keys: Sequence[LatentKeys]
    skipped: tuple[SkippedFile, ...]
    encoded: int
    refused: tuple[SkippedFile, ...] = ()
    identities: Sequence[LatentKeys] = ()

    @cached_property
    def table(self) -> PlannedTable:
        """The images that can be trained on, as columns."""
        return PlannedTable.of(self.images)

    def part(self, indices: Iterable[int]) -> CachedPlan:
        """Return a plan of the images at these indices."""
        chosen = list(indices)
        return CachedPlan([self.images[i] for i in chosen], [self.keys[i] for i in chosen], (), 0)

    def among(self, records: RecordTable) -> CachedPlan:
        """Return a plan of the images whose paths occur in `records`."""
        paths = {path for chunk in records.text_chunks("path") for path in chunk}
        is_among = self.table.records.matches("path", paths.__contains__)
        return self.part(np.flatnonzero(is_among).tolist())

    @property
    def encoded_ahead(self) -> bool:
        """Whether the moments of all images are cached, so that training encodes none."""
        if isinstance(self.keys, KeyTable):
            return self.keys.all_plain
        return all(key.plain for key in self.keys)


def latent_key(content_hash: str, planned: PlannedImage, source: str, *, flip: bool = False) -> str:
    """Return the key of a latent: a hash of all that its values depend on, in 32 hex digits.

    Args:
        content_hash: Hash of the image file's content.
        planned: The image, with the geometry of its resize and crop.
        source: The VAE's fingerprint, or the name of whatever else made the latent.
        flip: Whether the latent is that of the mirror image.
    """
    return _hashed(content_hash, _geometry(planned), f"flip={int(flip)}", source)


def latent_source(fingerprint: str, arithmetic: str) -> str:
    """Return the `source` of `latent_key`: the VAE's fingerprint alone for exact arithmetic."""
    return f"{fingerprint}/{arithmetic}" if arithmetic else fingerprint


def mask_key(content_hash: str, planned: PlannedImage, mask_hash: str) -> str:
    """Return the key of an image's loss weights: a hash of all that they depend on."""
    masks = planned.record.subset.masks
    alpha = masks is not None and masks.alpha
    return _hashed(content_hash, _geometry(planned), f"alpha={int(alpha)}", f"mask={mask_hash}")


def _geometry(planned: PlannedImage) -> str:
    crop, filter_ = planned.crop, planned.record.subset.interpolation
    text = f"{planned.resized}+{crop.left}+{crop.top}+{crop.size}+{filter_}"
    cut = planned.record.cut
    return text if cut is None else f"{text}+of={cut.box.left}+{cut.box.top}+{cut.box.size}"


def _hashed(*parts: str) -> str:
    version = f"preprocessing={images.PREPROCESSING_VERSION}"
    return hashlib.sha256("/".join([*parts, version]).encode("utf-8")).hexdigest()[:32]


class LatentCache:
    """A folder of shards with the moments of encoded images, and their masks.

    Args:
        folder: The folder of the shards; created on the first write.

    Raises:
        DatasetError: The folder holds a cache of a newer format.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open()
        self.hashes = ContentHashes(folder / HASHES_FILE)

    @cached_property
    def decoded(self) -> DecodeCache:
        """Record of which images were decoded, shared with scans that use the same folder."""
        return DecodeCache(self.folder.parent / "decoded.json")

    def _open(self) -> None:
        self._moments = Shards(self.folder, ("mean", "logvar"), "latent cache")
        self._masks = Shards(self.folder / "masks", ("mask",), "cache of masks")

    def refresh(self) -> None:
        """Add the shards that other processes have written to the index."""
        self._moments.refresh()
        self._masks.refresh()

    def take_written(self) -> tuple[list[str], list[str]]:
        """Return the names of shards written since the last call: of latents, and of masks."""
        return self._moments.take_written(), self._masks.take_written()

    def take_in(self, latents: Collection[str], masks: Collection[str]) -> None:
        """Add shards to the index by the names that another process has from `take_written`."""
        self._moments.take_in(latents)
        self._masks.take_in(masks)

    def reopen(self) -> None:
        """Open the cache again, with the index of keys that another process has saved, mapped."""
        note = self._moments.note
        self._open()
        self.set_notify(note)

    def __contains__(self, key: str) -> bool:
        return key in self._moments

    def __len__(self) -> int:
        return len(self._moments)

    def has_all(self, keys: npt.NDArray[np.uint8]) -> bool:
        """Return whether all keys have moments here: [keys, 16] bytes, zeros for no key."""
        return self._moments.has_all(keys)

    def has_mask(self, key: str) -> bool:
        """Return whether the cache has the mask of this key."""
        return key in self._masks

    def read(self, keys: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return (mean, logvar) of images of one bucket, [len(keys), 4, h, w] each, as stored.

        Raises:
            KeyError: A key is not in the cache.
        """
        mean, logvar = self._moments.read(keys)
        return torch.from_numpy(mean), torch.from_numpy(logvar)

    def read_masks(self, keys: Sequence[str]) -> Tensor:
        """Return masks of images of one bucket: [len(keys), 1, h, w] uint8, 255 for full weight.

        Raises:
            KeyError: A key is not in the cache.
        """
        return torch.from_numpy(self._masks.read(keys)[0])

    def write_shard(self, bucket: Size, keys: Sequence[str], mean: Tensor, logvar: Tensor) -> None:
        """Add the moments of images of one bucket.

        Raises:
            StorageError: The disk is full or the folder cannot be written.
        """
        columns = {"mean": mean.to(STORED_DTYPE), "logvar": logvar.to(STORED_DTYPE)}
        self._moments.write(str(bucket), keys, columns)

    def write_masks(self, bucket: Size, keys: Sequence[str], masks: Tensor) -> None:
        """Add the masks of images of one bucket, [N, 1, h, w] uint8.

        Raises:
            StorageError: The disk is full or the folder cannot be written.
        """
        self._masks.write(str(bucket), keys, {"mask": masks})

    def set_notify(self, note: Callable[[str], None]) -> None:
        """Set the function called with a message when writing has to wait for another process."""
        self._moments.note = self._masks.note = note

    @contextlib.contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Lock the cache against use by other processes, to remove entries from it.

        Args:
            what: What it is locked for, shown to processes that wait.

        Raises:
            DatasetError: Another process is using it.
        """

        def refuse(holder: LockHolder) -> None:
            raise DatasetError(
                f"The latent cache {shown(self.folder)} is in use by {holder.description}. Nothing "
                f"was removed. Run this again when it has ended."
            )

        if is_remote(self.folder):
            with storage_errors.reported(machine_folder(self.folder)):
                machine_folder(self.folder).mkdir(parents=True, exist_ok=True)
        if machine_folder(self.folder).is_dir():
            with locks.exclusive_lock(self.folder, what, refuse):
                self.refresh()
                yield
        else:
            yield

    def remove_leftovers(self) -> None:
        """Remove the partly written files of killed processes."""
        self._moments.remove_leftovers()
        self._masks.remove_leftovers()

    def keep_index(self) -> None:
        """Save the index of a cache with many keys, so that the next start reads a single file."""
        self._moments.keep_index()
        self._masks.keep_index()

    @property
    def answers_late(self) -> bool:
        """Whether reads wait for a network, so that many must be requested in advance."""
        return is_remote(self.folder)

    @property
    def number_of_shards(self) -> int:
        """The number of shards, of latents and of masks."""
        return sum(len(shards.indices()) for shards in (self._moments, self._masks))

    def verify(self, *, remove: bool) -> Iterator[BadShard | None]:
        """Read each shard in full and yield its fault, or None; bad ones are deleted if `remove`.

        A shard that the disk cannot read is kept: it may be readable another time.
        """
        yield from self._moments.verify(remove=remove)
        yield from self._masks.verify(remove=remove)

    def remove_orphans(self) -> int:
        """Remove tensors that no index refers to, and return the bytes freed.

        Raises:
            StorageError: The cache is in an object store that cannot be used.
        """
        return self._moments.remove_orphans() + self._masks.remove_orphans()

    def prune(self, wanted: Collection[LatentKeys]) -> Iterator[tuple[int, int]]:
        """Remove unwanted entries; yield (entries removed, bytes freed) after each shard.

        Raises:
            StorageError: The disk is full or the folder cannot be written.
        """
        columns = (wanted if isinstance(wanted, KeyTable) else KeyTable.of(list(wanted))).columns
        none = np.zeros((0, 16), np.uint8)
        moments = [columns.get(name, none) for name in ("plain", "flipped")]
        yield from self._moments.keep_only(KeySet(np.concatenate(moments)))
        yield from self._masks.keep_only(KeySet(columns.get("mask", none)))
