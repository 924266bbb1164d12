"""VAE outputs on disk: moments in shards, found by content, so that a stale one cannot be found.

A shard (`data/sharding/shards.py`) holds images of one bucket: `mean` and `logvar`, both [N, 4, h,
w], or in the folder of masks `mask`, [N, 1, h, w]. Any number of resolutions, VAEs and datasets
share a folder.
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
    """Planned images with the keys of their latents, and those that could not be encoded.

    Attributes:
        images: The images that can be trained on.
        keys: What is kept of each.
        skipped: Images that could not be decoded or encoded.
        encoded: How many images were encoded now.
        refused: Latents of sd-scripts that do not fit their images; they were made anew.
        identities: The keys as they would be of exact arithmetic: what a training state is compared
            by, which another device may go on from. Empty means the keys.
    """

    images: Sequence[PlannedImage]
    keys: Sequence[LatentKeys]
    skipped: tuple[SkippedFile, ...]
    encoded: int
    refused: tuple[SkippedFile, ...] = ()
    identities: Sequence[LatentKeys] = ()

    @cached_property
    def table(self) -> PlannedTable:
        """The images that were encoded, as columns."""
        return PlannedTable.of(self.images)

    def part(self, indices: Iterable[int]) -> CachedPlan:
        """Some of the images."""
        chosen = list(indices)
        return CachedPlan([self.images[i] for i in chosen], [self.keys[i] for i in chosen], (), 0)

    def among(self, records: RecordTable) -> CachedPlan:
        """The images whose paths are those of some records."""
        paths = {path for chunk in records.text_chunks("path") for path in chunk}
        is_among = self.table.records.matches("path", paths.__contains__)
        return self.part(np.flatnonzero(is_among).tolist())

    @property
    def encoded_ahead(self) -> bool:
        """Whether the moments of all images are kept, so that training encodes none."""
        if isinstance(self.keys, KeyTable):
            return self.keys.all_plain
        return all(key.plain for key in self.keys)


def latent_key(content_hash: str, planned: PlannedImage, source: str, *, flip: bool = False) -> str:
    """The name of a latent: a hash over all that its numbers depend on, in 32 hex digits.

    Args:
        content_hash: Of the image's file.
        planned: How it is resized and cropped.
        source: The VAE's fingerprint, or what else made the latent.
        flip: Whether it is that of the mirror image.
    """
    return _hashed(content_hash, _geometry(planned), f"flip={int(flip)}", source)


def latent_source(fingerprint: str, arithmetic: str) -> str:
    """What `latent_key` takes as source: of exact arithmetic it is the VAE's fingerprint."""
    return f"{fingerprint}/{arithmetic}" if arithmetic else fingerprint


def mask_key(content_hash: str, planned: PlannedImage, mask_hash: str) -> str:
    """The name of an image's weights: a hash over all that they depend on."""
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
        folder: Where the shards are; created when something is written.

    Raises:
        DatasetError: The folder holds a cache of a newer format.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open()
        self.hashes = ContentHashes(folder / HASHES_FILE)

    @cached_property
    def decoded(self) -> DecodeCache:
        """What was decoded of the images, as scans of the same derived data keep it."""
        return DecodeCache(self.folder.parent / "decoded.json")

    def _open(self) -> None:
        self._moments = Shards(self.folder, ("mean", "logvar"), "latent cache")
        self._masks = Shards(self.folder / "masks", ("mask",), "cache of masks")

    def refresh(self) -> None:
        """Take in what other processes have added meanwhile."""
        self._moments.refresh()
        self._masks.refresh()

    def take_written(self) -> tuple[list[str], list[str]]:
        """The names of the shards written here since this was last asked for: latents, masks."""
        return self._moments.take_written(), self._masks.take_written()

    def take_in(self, latents: Collection[str], masks: Collection[str]) -> None:
        """Take in shards by the names that another process has from `take_written`."""
        self._moments.take_in(latents)
        self._masks.take_in(masks)

    def reopen(self) -> None:
        """Open the cache anew, with the index of keys that another process has kept mapped."""
        note = self._moments.note
        self._open()
        self.set_notify(note)

    def __contains__(self, key: str) -> bool:
        return key in self._moments

    def __len__(self) -> int:
        return len(self._moments)

    def has_all(self, keys: npt.NDArray[np.uint8]) -> bool:
        """Whether the moments of all names are there: [names, 16] bytes, zeros for no name."""
        return self._moments.has_all(keys)

    def has_mask(self, key: str) -> bool:
        """Whether the weights of this name are there."""
        return key in self._masks

    def read(self, keys: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Moments of images of one bucket: (mean, logvar), each [len(keys), 4, h, w] as stored.

        Raises:
            KeyError: A key is not in the cache.
        """
        mean, logvar = self._moments.read(keys)
        return torch.from_numpy(mean), torch.from_numpy(logvar)

    def read_masks(self, keys: Sequence[str]) -> Tensor:
        """Weights of images of one bucket: [len(keys), 1, h, w] uint8, 255 for full weight.

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
        """Add the weights of images of one bucket, [N, 1, h, w] uint8.

        Raises:
            StorageError: The disk is full or the folder cannot be written.
        """
        self._masks.write(str(bucket), keys, {"mask": masks})

    def set_notify(self, note: Callable[[str], None]) -> None:
        """Set what is called with a message when writing has to wait for another process."""
        self._moments.note = self._masks.note = note

    @contextlib.contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Have the cache without any process that uses it, to remove things from it.

        Raises:
            DatasetError: One uses it.
        """

        def refuse(holder: LockHolder) -> None:
            raise DatasetError(
                f"The latent cache {shown(self.folder)} is in use by {holder.description}. Nothing "
                f"was removed. Run this again when that has ended."
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
        """Remove what a killed process left half written."""
        self._moments.remove_leftovers()
        self._masks.remove_leftovers()

    def keep_index(self) -> None:
        """Have the next start read one file instead of one per shard, where there are many keys."""
        self._moments.keep_index()
        self._masks.keep_index()

    @property
    def answers_late(self) -> bool:
        """Whether reading waits for a network, so that much has to be asked for ahead."""
        return is_remote(self.folder)

    @property
    def number_of_shards(self) -> int:
        """The number of shards of both kinds."""
        return sum(len(shards.indices()) for shards in (self._moments, self._masks))

    def verify(self, *, remove: bool) -> Iterator[BadShard | None]:
        """Read each shard whole and yield what is wrong with it, or None; perhaps delete it.

        One that the disk does not give is left: another time it may.
        """
        yield from self._moments.verify(remove=remove)
        yield from self._masks.verify(remove=remove)

    def remove_orphans(self) -> int:
        """Remove tensors that no process will find again, and return their bytes.

        Raises:
            StorageError: The cache is in an object store that cannot be used.
        """
        return self._moments.remove_orphans() + self._masks.remove_orphans()

    def prune(self, wanted: Collection[LatentKeys]) -> Iterator[tuple[int, int]]:
        """Drop what is not wanted; after each shard, yield (entries dropped, bytes freed).

        Raises:
            StorageError: The disk is full or the folder cannot be written.
        """
        columns = (wanted if isinstance(wanted, KeyTable) else KeyTable.of(list(wanted))).columns
        none = np.zeros((0, 16), np.uint8)
        moments = [columns.get(name, none) for name in ("plain", "flipped")]
        yield from self._moments.keep_only(KeySet(np.concatenate(moments)))
        yield from self._masks.keep_only(KeySet(columns.get("mask", none)))
