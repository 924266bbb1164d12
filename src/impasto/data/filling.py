"""Fills the latent cache: decode in worker processes, encode on the device, write in a thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path

import numpy as np
import torch

from impasto import locks
from impasto.data.content_hashes import stamp_of
from impasto.data.encoding import ARITHMETICS, Begun, Encode, MomentsEncoder, said_of_remade
from impasto.data.latent_cache import (
    CachedPlan,
    LatentCache,
    LatentKeys,
    latent_key,
    latent_source,
    mask_key,
)
from impasto.data.latent_writing import ShardWriter, shard_writer
from impasto.data.masks import mask_file
from impasto.data.npz import SD_ENDINGS, npz_candidates
from impasto.data.npz_exchange import import_npz
from impasto.data.records import PlannedImage, Size, SkippedFile
from impasto.data.rendering import Decode, Render, Rendered
from impasto.data.stages import ErrorPolicy, Failure, LocalExecutor, chunks, default_workers
from impasto.errors import DatasetError
from impasto.progress import Progress, SilentProgress, none_of

PROCESSES_FROM = 256  # starting processes takes as long as decoding some of these
_VANISHED = "vanished or became unreadable"


@dataclass(frozen=True)
class _Order:
    """An image and what is to be made of it: only keys that are not in the cache."""

    image: PlannedImage
    missing: LatentKeys


def cache_latents(
    planned: Sequence[PlannedImage],
    cache: LatentCache,
    encoder: MomentsEncoder,
    progress: Progress | None = None,
    *,
    on_error: ErrorPolicy = "skip",
    workers: int | None = None,
) -> CachedPlan:
    """Encode the images that the cache does not hold; skip those that cannot be.

    Killed at any moment, it loses at most two shards: the one being written and the one being
    filled. Images that change each time they are shown are only decoded, to find those that
    cannot be.

    Args:
        planned: The images.
        cache: Where their latents are kept.
        encoder: Makes them.
        progress: Where to show how far it is.
        on_error: Whether an image that cannot be used is skipped, or ends it all.
        workers: Processes that decode; None means as many as there are processors, and threads
            for a few images.

    Raises:
        DatasetError: No image is left, or `on_error` is `stop` and one cannot be used.
        StorageError: The disk is full or the folder cannot be written.
    """
    progress = progress or SilentProgress()
    cache.set_notify(progress.note)
    cache.remove_leftovers()
    digests = _hashes(planned, cache, progress, encoder.npz_endings)
    keys = [_keys(image, digests, encoder.source) for image in planned]
    own = set(keys)
    refused = import_npz(planned, keys, digests, cache, progress, encoder.npz_endings)
    failures = _Failures(on_error)
    for image, key in zip(planned, keys, strict=True):
        if key is None:
            failures.add(image, _VANISHED)
    orders = list(_missing(planned, keys, cache))
    _decode_the_changing(planned, progress, failures)
    if orders:
        _carry_out(orders, cache, encoder, failures, progress, workers)
    kept = [
        (image, key)
        for image, key in zip(planned, keys, strict=True)
        if key is not None and image.record.path not in failures.paths and _is_there(key, cache)
    ]
    if not kept:
        reasons = "; ".join(f"{item.path.name}: {item.reason}" for item in failures.items[:3])
        raise DatasetError(f"{none_of(len(planned), 'images')} could be decoded ({reasons}).")
    done = sum(order.image.record.path not in failures.paths for order in orders)
    return CachedPlan(
        tuple(image for image, _ in kept),
        tuple(key for _, key in kept),
        tuple(failures.items),
        done,
        tuple(refused),
        tuple(
            (_keys(image, digests, encoder.fingerprint) or key) if key in own else key
            for image, key in kept
        ),
    )


def keys_of_plan(
    planned: Sequence[PlannedImage],
    cache: LatentCache,
    fingerprint: str,
    progress: Progress,
    endings: Sequence[str] = SD_ENDINGS,
) -> list[LatentKeys]:
    """What the cache would keep of these images, latents of sd-scripts included.

    All that one VAE makes of them counts, on whatever device.
    """
    digests = _hashes(planned, cache, progress, endings)
    sources = [latent_source(fingerprint, arithmetic) for arithmetic in ARITHMETICS]
    named = [[_keys(image, digests, source) for image in planned] for source in sources]
    keys = named[0]
    found = [key for of_source in named for key in of_source if key is not None]
    import_npz(planned, keys, digests, cache, progress, endings)
    return found + [key for key in keys if key is not None]


class _Failures:
    """The images that cannot be used, each once."""

    def __init__(self, policy: ErrorPolicy) -> None:
        self._policy = policy
        self.items: list[SkippedFile] = []
        self.paths: set[Path] = set()

    def add(self, image: PlannedImage, reason: str) -> None:
        path = image.record.path
        if self._policy == "stop":
            raise DatasetError(
                f"{path}: {reason}. Repair or remove it, or set dataset.on_error to skip."
            )
        if path not in self.paths:
            self.paths.add(path)
            self.items.append(SkippedFile(path, reason))


def _hashes(
    planned: Sequence[PlannedImage],
    cache: LatentCache,
    progress: Progress,
    endings: Sequence[str],
) -> dict[Path, str]:
    """Hashes of the images, of their masks, and of latents that sd-scripts left."""
    stamps = {image.record.path: image.record.stamp for image in planned}
    for image in planned:
        subset = image.record.subset
        beside = list(npz_candidates(image, endings)) if subset.reads_npz else []
        mask = mask_file(image.record)
        for path in (*beside, *([mask] if mask else [])):
            stamp = stamp_of(path)
            if stamp is not None:
                stamps[path] = stamp
    return cache.hashes.of(stamps, progress)


def _keys(image: PlannedImage, digests: dict[Path, str], fingerprint: str) -> LatentKeys | None:
    """What is kept of an image; None if it cannot even be read."""
    record = image.record
    if record.path not in digests:
        return None
    if record.subset.augmentation is not None:
        return LatentKeys()
    content = digests[record.path]
    mask = ""
    if record.subset.masks is not None:
        file = mask_file(record)
        mask = mask_key(content, image, digests.get(file, "") if file else "")
    flips = record.subset.may_flip(record.words)
    return LatentKeys(
        latent_key(content, image, fingerprint),
        latent_key(content, image, fingerprint, flip=True) if flips else "",
        mask,
    )


def _is_there(key: LatentKeys, cache: LatentCache) -> bool:
    return all(not k or k in cache for k in (key.plain, key.flipped)) and (
        not key.mask or cache.has_mask(key.mask)
    )


def _missing(
    planned: Sequence[PlannedImage], keys: Sequence[LatentKeys | None], cache: LatentCache
) -> Iterator[_Order]:
    claimed: set[str] = set()

    def missing(key: str, *, there: bool) -> str:
        if not key or there or key in claimed:
            return ""
        claimed.add(key)
        return key

    for image, key in zip(planned, keys, strict=True):
        if key is not None:
            wanted = LatentKeys(
                missing(key.plain, there=key.plain in cache),
                missing(key.flipped, there=key.flipped in cache),
                missing(key.mask, there=cache.has_mask(key.mask)),
            )
            if wanted != LatentKeys():
                yield _Order(image, wanted)


def _decode_the_changing(
    planned: Sequence[PlannedImage], progress: Progress, failures: _Failures
) -> None:
    """Decode what is not encoded ahead once, so that training does not stumble over it."""
    changing = {
        image.record.path: image
        for image in planned
        if image.record.subset.augmentation is not None
    }
    if not changing:
        return
    executor = LocalExecutor(Decode(), workers=default_workers())
    records = [image.record for image in changing.values()]
    with progress.stage("Checking images", len(records), "images") as advance:
        for outcomes in executor.run(chunks(records, 4)):
            for record, outcome in outcomes:
                if isinstance(outcome, Failure):
                    failures.add(changing[record.path], outcome.reason)
            advance(len(outcomes))


def _carry_out(
    orders: Sequence[_Order],
    cache: LatentCache,
    encoder: MomentsEncoder,
    failures: _Failures,
    progress: Progress,
    workers: int | None,
) -> None:
    """Decode ahead in processes, encode here, and write shard by shard in a thread."""
    by_bucket = sorted(orders, key=_bucket_of)
    batches = list(
        chain.from_iterable(
            chunks(list(group), encoder.batch_size) for _, group in groupby(by_bucket, _bucket_of)
        )
    )
    executor = LocalExecutor(
        Render(),
        workers=default_workers() if workers is None else workers,
        processes=workers is not None or len(orders) >= PROCESSES_FROM,
    )
    rendered = executor.run([order.image for order in batch] for batch in batches)
    patience = locks.LockWaiter(progress.note, f"encoding into {cache.folder}")
    with (
        locks.SharedLock(cache.folder, "encoding images", patience),
        progress.stage("Encoding latents", len(orders), "images") as advance,
        shard_writer(cache) as writer,
    ):
        device = _Device(cache, encoder, writer, failures)
        for batch, outcomes in zip(batches, rendered, strict=True):
            good = []
            for order, (_, outcome) in zip(batch, outcomes, strict=True):
                if isinstance(outcome, Failure):
                    failures.add(order.image, outcome.reason)
                else:
                    good.append((order, outcome))
            device.take(good)
            advance(len(batch))
        device.finish()
    if device.remade:
        paths = {order.image.record.path for order in orders}
        progress.note(said_of_remade(len(device.remade), len(paths)))


@dataclass(frozen=True)
class _Task:
    """An image or its mirror image, to be encoded under a key."""

    image: PlannedImage
    key: str
    pixels: np.ndarray


class _Device:
    """Encodes images, one batch behind: what comes next is made ready while a GPU computes.

    Args:
        cache: What another process has put there meanwhile is left out.
        encoder: The VAE.
        writer: Is given moments and masks.
        failures: Are given what cannot be encoded.

    Attributes:
        remade: Images that were encoded again in float32.
    """

    def __init__(
        self, cache: LatentCache, encoder: MomentsEncoder, writer: ShardWriter, failures: _Failures
    ) -> None:
        self._cache, self._writer, self._failures = cache, writer, failures
        self._encode, self._batch_size = Encode(encoder), encoder.batch_size
        self._behind: tuple[Sequence[_Task], Begun] | None = None
        self.remade: set[Path] = set()

    def take(self, rendered: Sequence[tuple[_Order, Rendered]]) -> None:
        """Encode images and mirror images as ordered, and keep their masks."""
        tasks: list[_Task] = []
        for order, picture in rendered:
            if order.missing.plain and order.missing.plain not in self._cache:
                tasks.append(_Task(order.image, order.missing.plain, picture.pixels))
            if order.missing.flipped and order.missing.flipped not in self._cache:
                mirrored = picture.pixels[:, ::-1]
                tasks.append(_Task(order.image, order.missing.flipped, mirrored))
            if order.missing.mask and picture.mask is not None:
                mask = torch.from_numpy(picture.mask)
                self._writer.add_mask(order.image.bucket, order.missing.mask, mask)
        for part in chunks(tasks, self._batch_size):
            begun = self._encode.begin([task.pixels for task in part])
            self.finish()
            self._behind = part, begun

    def finish(self) -> None:
        """Hand on what the device still works on."""
        if self._behind is None:
            return
        tasks, begun = self._behind
        self._behind = None
        for task, outcome in zip(tasks, self._encode.finish(begun), strict=True):
            if isinstance(outcome, Failure):
                self._failures.add(task.image, outcome.reason)
            else:
                self._writer.add(task.image.bucket, task.key, *outcome)
        self.remade |= {tasks[i].image.record.path for i in begun.remade}


def _bucket_of(order: _Order) -> Size:
    return order.image.bucket
