"""Fills the latent cache: decode in worker processes, encode on the device, write in a thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path

import numpy as np

from impasto import locks
from impasto.data.content_hashes import stamp_of
from impasto.data.device_encoding import DeviceEncoder, Failures, Order
from impasto.data.encoding import ARITHMETICS, MomentsEncoder, said_of_remade
from impasto.data.engine import LOCAL, Engine
from impasto.data.latent_cache import (
    CachedPlan,
    LatentCache,
    LatentKeys,
    latent_key,
    latent_source,
    mask_key,
)
from impasto.data.latent_keys import KeyTable, join_keys
from impasto.data.latent_writing import ShardWriter, shard_writer
from impasto.data.masks import mask_file
from impasto.data.npz import SD_ENDINGS, npz_candidates
from impasto.data.npz_exchange import import_npz
from impasto.data.order_encoding import encode_by_actors, stage_of
from impasto.data.planned_table import PlannedTable
from impasto.data.prepared import PreparedKeys
from impasto.data.records import FileStamp, PlannedImage, Size, SkippedFile
from impasto.data.rendering import Decode, Render
from impasto.data.stages import ErrorPolicy, Failure, chunks
from impasto.errors import DatasetError
from impasto.progress import Advance, Progress, SilentProgress, none_of

PORTION = 1 << 17
"""Images that are looked at as objects together."""
PROCESSES_FROM = 256  # starting processes takes as long as decoding some of these
_VANISHED = Failure("vanished or became unreadable", is_transient=True)


def cache_latents(
    planned: Sequence[PlannedImage],
    cache: LatentCache,
    encoder: MomentsEncoder,
    progress: Progress | None = None,
    *,
    on_error: ErrorPolicy = "skip",
    workers: int | None = None,
    engine: Engine = LOCAL,
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
        engine: Runs what is done.

    Raises:
        ConfigError: The engine's processes cannot make the encoder.
        DatasetError: No image is left, or `on_error` is `stop` and one cannot be used.
        StorageError: The disk is full or the folder cannot be written.
    """
    progress = progress or SilentProgress()
    cache.set_notify(progress.note)
    cache.remove_leftovers()
    table = PlannedTable.of(planned)
    kept_keys = PreparedKeys(
        cache.folder / "prepared", table, (encoder.source, encoder.fingerprint)
    )
    before = kept_keys.read(cache)
    if before is not None and not (before.set_aside and on_error == "stop"):
        return before
    filler = _Filler(cache, encoder, progress, Failures(on_error), workers, engine)
    parts = [filler.fill(table[start:end]) for start, end in _portions(table)]
    cache.hashes.tidy()
    failures = filler.failures
    if not any(len(part.keys) for part in parts):
        raise _nothing_decoded(len(planned), failures)
    kept = np.concatenate([part.kept for part in parts])
    keys = join_keys([part.keys for part in parts])
    identities = join_keys([part.identities for part in parts])
    plan = CachedPlan(
        table if kept.all() else table.select(kept),
        keys,
        tuple(failures.items),
        sum(part.encoded for part in parts),
        tuple(item for part in parts for item in part.refused),
        keys if encoder.source == encoder.fingerprint else identities,
    )
    if not failures.may_pass:
        kept_keys.write(plan, kept)
    return plan


def _nothing_decoded(images: int, failures: Failures) -> DatasetError:
    reasons = "; ".join(f"{item.path.name}: {item.reason}" for item in failures.items[:3])
    return DatasetError(f"{none_of(images, 'images')} could be decoded ({reasons}).")


def _portions(table: PlannedTable) -> Iterator[tuple[int, int]]:
    """Where portions of images begin and end that are looked at as objects together.

    Latents of sd-scripts may be of several images, so where some are read there is one portion.
    """
    reads = any(use.subset.reads_npz for use in table.records.uses)
    size = max(1, len(table)) if reads else PORTION
    return ((start, min(len(table), start + size)) for start in range(0, len(table), size))


@dataclass(frozen=True)
class _Filled:
    """What became of a portion of images.

    Attributes:
        kept: [images]: which can be trained on.
        keys: The keys of those.
        identities: Their keys as they would be of exact arithmetic.
        encoded: How many were encoded now.
        refused: Latents of sd-scripts that do not fit their images.
    """

    kept: np.ndarray
    keys: KeyTable
    identities: KeyTable
    encoded: int
    refused: Sequence[SkippedFile]


@dataclass(frozen=True)
class _Filler:
    """Encodes portions of images into a cache."""

    cache: LatentCache
    encoder: MomentsEncoder
    progress: Progress
    failures: Failures
    workers: int | None
    engine: Engine

    def fill(self, portion: PlannedTable) -> _Filled:
        """Encode what the cache does not hold of some images."""
        cache, encoder, progress, failures = self.cache, self.encoder, self.progress, self.failures
        planned = list(portion)
        stamps = _stamps(planned, encoder.npz_endings)
        digests = cache.hashes.of(stamps, progress, tidy=False, engine=self.engine)
        keys = [_keys(image, digests, encoder.source) for image in planned]
        own = set(keys)
        refused = import_npz(planned, keys, digests, cache, progress, encoder.npz_endings)
        for image, key in zip(planned, keys, strict=True):
            if key is None:
                failures.add(image, _VANISHED)
        orders = list(_missing(planned, keys, cache))
        _decode_the_changing(planned, progress, failures, self.engine)
        if orders:
            _carry_out(orders, self)
        cache.keep_index()
        kept = [
            (place, image, key)
            for place, (image, key) in enumerate(zip(planned, keys, strict=True))
            if key is not None and image.record.path not in failures.paths and _is_there(key, cache)
        ]
        is_kept = np.zeros(len(planned), dtype=np.bool_)
        is_kept[[place for place, _, _ in kept]] = True
        identities = [
            (_keys(image, digests, encoder.fingerprint) or key) if key in own else key
            for _, image, key in kept
        ]
        return _Filled(
            is_kept,
            KeyTable.of([key for _, _, key in kept]),
            KeyTable.of(identities),
            sum(order.image.record.path not in failures.paths for order in orders),
            refused,
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
    digests = cache.hashes.of(_stamps(planned, endings), progress)
    sources = [latent_source(fingerprint, arithmetic) for arithmetic in ARITHMETICS]
    named = [[_keys(image, digests, source) for image in planned] for source in sources]
    keys = named[0]
    found = [key for of_source in named for key in of_source if key is not None]
    import_npz(planned, keys, digests, cache, progress, endings)
    return found + [key for key in keys if key is not None]


def _stamps(planned: Sequence[PlannedImage], endings: Sequence[str]) -> dict[Path, FileStamp]:
    """Stamps of the images, of their masks, and of latents that sd-scripts left."""
    stamps = {image.record.path: image.record.stamp for image in planned}
    for image in planned:
        subset = image.record.subset
        beside = list(npz_candidates(image, endings)) if subset.reads_npz else []
        mask = mask_file(image.record)
        for path in (*beside, *([mask] if mask else [])):
            stamp = stamp_of(path)
            if stamp is not None:
                stamps[path] = stamp
    return stamps


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
) -> Iterator[Order]:
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
                yield Order(image, wanted)


def _decode_the_changing(
    planned: Sequence[PlannedImage], progress: Progress, failures: Failures, engine: Engine
) -> None:
    """Decode what is not encoded ahead once, so that training does not stumble over it."""
    changing = {
        image.record.path: image
        for image in planned
        if image.record.subset.augmentation is not None
    }
    if not changing:
        return
    executor = engine.executor(Decode())
    records = [image.record for image in changing.values()]
    with progress.stage("Checking images", len(records), "images") as advance:
        for outcomes in executor.run(chunks(records, 4)):
            for record, outcome in outcomes:
                if isinstance(outcome, Failure):
                    failures.add(changing[record.path], outcome)
            advance(len(outcomes))


def _carry_out(orders: Sequence[Order], filler: _Filler) -> None:
    """Have images encoded, and written shard by shard in a thread."""
    cache, progress = filler.cache, filler.progress
    by_bucket = sorted(orders, key=_bucket_of)
    batches = list(
        chain.from_iterable(
            chunks(list(group), filler.encoder.batch_size)
            for _, group in groupby(by_bucket, _bucket_of)
        )
    )
    patience = locks.LockWaiter(progress.note, f"encoding into {cache.folder}")
    with (
        locks.SharedLock(cache.folder, "encoding images", patience),
        progress.stage("Encoding latents", len(orders), "images") as advance,
        shard_writer(cache) as writer,
    ):
        actors = filler.engine.actors
        if actors is None:
            remade = _encode_here(batches, filler, writer, advance)
        else:
            stage = stage_of(filler.encoder)
            remade = encode_by_actors(
                actors,
                stage,
                batches,
                writer,
                filler.failures,
                workers=filler.workers,
                advance=advance,
            )
    if remade:
        paths = {order.image.record.path for order in orders}
        progress.note(said_of_remade(len(remade), len(paths)))


def _encode_here(
    batches: Sequence[Sequence[Order]], filler: _Filler, writer: ShardWriter, advance: Advance
) -> set[Path]:
    """Decode ahead in processes and encode in this one; return the images remade in float32."""
    executor = filler.engine.executor(
        Render(),
        workers=filler.workers,
        processes=filler.workers is not None or sum(map(len, batches)) >= PROCESSES_FROM,
    )
    rendered = executor.run([order.image for order in batch] for batch in batches)
    device = DeviceEncoder(filler.cache, filler.encoder, writer, filler.failures)
    for batch, outcomes in zip(batches, rendered, strict=True):
        good = []
        for order, (_, outcome) in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Failure):
                filler.failures.add(order.image, outcome)
            else:
                good.append((order, outcome))
        device.take(good)
        advance(len(batch))
    device.finish()
    return device.remade


def _bucket_of(order: Order) -> Size:
    return order.image.bucket
