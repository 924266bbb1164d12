"""Determines which keys of images the latent cache lacks, and which process makes them."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterator, Sequence
from itertools import chain, groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt

from impasto.data.caching.device_encoding import Order
from impasto.data.caching.latent_cache import LatentCache, LatentKeys, latent_key, mask_key
from impasto.data.caching.npz import npz_candidates
from impasto.data.engines.process_group import CachePeers, wait_until_seen
from impasto.data.engines.stages import Failure, chunks
from impasto.data.folders.masks import mask_file
from impasto.data.pixels.content_hashes import stamp_of
from impasto.data.planning.planned_table import PlannedTable
from impasto.data.records import FileStamp, PlannedImage, Size
from impasto.data.sharding.shard_index import KEPT_FROM
from impasto.member_paths import is_member
from impasto.remote_paths import is_remote

PORTION = 1 << 17
"""Number of images that are handled as objects at a time."""


def portions_of(table: PlannedTable) -> Iterator[tuple[int, int]]:
    """Return (start, end) of the portions in which images are handled as objects.

    If latents of sd-scripts are read there is one portion, as several images may share a file.
    """
    reads = any(use.subset.reads_npz for use in table.records.uses)
    size = max(1, len(table)) if reads else PORTION
    return ((start, min(len(table), start + size)) for start in range(0, len(table), size))


def stamps_of(planned: Sequence[PlannedImage], endings: Sequence[str]) -> dict[Path, FileStamp]:
    """Return the stamps of the images, their masks, and latents left by sd-scripts."""
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


def keys_of(image: PlannedImage, digests: dict[Path, str], fingerprint: str) -> LatentKeys | None:
    """Return the cache keys of an image; None if it, or its mask, cannot be read.

    All keys are empty for an image that changes each time it is shown.
    """
    record = image.record
    if record.path not in digests:
        return None
    if record.subset.augmentation is not None:
        return LatentKeys()
    content = digests[record.path]
    mask = ""
    if record.subset.masks is not None:
        file = mask_file(record)
        if file is not None and file not in digests:
            return None  # its key would be that of an image without a mask
        mask = mask_key(content, image, digests[file] if file else "")
    flips = record.subset.may_flip(record.caption_text)
    return LatentKeys(
        latent_key(content, image, fingerprint),
        latent_key(content, image, fingerprint, flip=True) if flips else "",
        mask,
    )


def why_unread(image: PlannedImage, digests: Container[Path]) -> Failure:
    """Return the reason why `keys_of` returned None for an image."""
    path, what = image.record.path, ""
    if path in digests:
        path, what = mask_file(image.record) or path, "its mask "
    return Failure(f"{what}vanished or became unreadable{read_fault(path)}", is_transient=True)


def read_fault(path: Path) -> str:
    """Return the system's error on reading a file, as " (...)".

    Empty if reading succeeds, or if the file is in an object store or in a container.
    """
    if is_remote(path) or is_member(path):
        return ""
    try:
        if not path.is_fifo():
            with path.open("rb") as file:
                file.read(1)
    except OSError as error:
        return f" ({error.strerror or error})"
    return ""


def is_there(key: LatentKeys, cache: LatentCache) -> bool:
    """Return whether the cache holds the latents and the mask of an image."""
    return all(not k or k in cache for k in (key.plain, key.flipped)) and (
        not key.mask or cache.has_mask(key.mask)
    )


Lacks = npt.NDArray[np.bool_]
"""[images, 3]: whether the latent, that of the mirror image, and the mask have to be made."""


def lacks_of(
    planned: Sequence[PlannedImage], keys: Sequence[LatentKeys | None], cache: LatentCache
) -> Lacks:
    """Return what the cache lacks; a key that several images share is set for the first alone."""
    claimed: set[str] = set()

    def is_wanted(key: str, *, there: bool) -> bool:
        if not key or there or key in claimed:
            return False
        claimed.add(key)
        return True

    lacks = np.zeros((len(planned), 3), dtype=np.bool_)
    for index, key in enumerate(keys):
        if key is not None:
            lacks[index] = (
                is_wanted(key.plain, there=key.plain in cache),
                is_wanted(key.flipped, there=key.flipped in cache),
                is_wanted(key.mask, there=cache.has_mask(key.mask)),
            )
    return lacks


def still_lacking(
    lacks: Lacks, keys: Sequence[LatentKeys | None], cache: LatentCache
) -> frozenset[bytes]:
    """Return the keys flagged in `lacks` that are still not in the cache."""
    holds = (cache.__contains__, cache.__contains__, cache.has_mask)
    flagged = _flagged(lacks, keys)
    return frozenset(bytes.fromhex(key) for _, kind, key in flagged if not holds[kind](key))


def passed_on(
    lacks: Lacks,
    planned: Sequence[PlannedImage],
    keys: Sequence[LatentKeys | None],
    failed: Container[Path],
) -> Lacks:
    """Return `lacks` without the images that failed; each key passes to the next image that has it.

    An image may fail where its copy does not: because of its mask, or because its file is missing.
    """
    flags, orphans = lacks.copy(), set[str]()
    for index, kind, key in _flagged(lacks, keys):
        if planned[index].record.path in failed:
            flags[index, kind] = False
            orphans.add(key)
    for index, key_of_image in enumerate(keys if orphans else ()):
        if key_of_image is None or planned[index].record.path in failed:
            continue
        for kind, key in enumerate(_in_row(key_of_image)):
            if key in orphans:
                orphans.discard(key)
                flags[index, kind] = True
    return flags


def flags_of(wanted: frozenset[bytes], keys: Sequence[LatentKeys | None], lacks: Lacks) -> Lacks:
    """Return `lacks` restricted to the wanted keys."""
    flags = np.zeros_like(lacks)
    if wanted:
        for index, kind, key in _flagged(lacks, keys):
            flags[index, kind] = bytes.fromhex(key) in wanted
    return flags


def _flagged(lacks: Lacks, keys: Sequence[LatentKeys | None]) -> Iterator[tuple[int, int, str]]:
    """Yield (image, column, key) per flag; none of an image that this process cannot read."""
    for index, kind in np.argwhere(lacks).tolist():
        key = _in_row(keys[index] or LatentKeys())[kind]
        if key:
            yield index, kind, key


def ordered(
    planned: Sequence[PlannedImage], keys: Sequence[LatentKeys | None], lacks: Lacks
) -> list[Order]:
    """Return the orders for what is lacking, in the order of the images."""
    numbers, orders = lacks[:, :2].sum(axis=1).tolist(), []
    for index in np.flatnonzero(lacks.any(axis=1)).tolist():
        key = keys[index] or LatentKeys()  # another process can read the file, but this one cannot
        wanted = (
            k if is_wanted else "" for k, is_wanted in zip(_in_row(key), lacks[index], strict=True)
        )
        orders.append(Order(planned[index], LatentKeys(*wanted), numbers[index]))
    return orders


def _in_row(key: LatentKeys) -> tuple[str, str, str]:
    return key.plain, key.flipped, key.mask


def batches_of(orders: Sequence[Order], batch_size: int) -> list[list[Order]]:
    """Group orders into batches of one bucket, independently of how many processes share them."""
    by_bucket = sorted(orders, key=_bucket_of)
    groups = (list(group) for _, group in groupby(by_bucket, _bucket_of))
    batches: Iterator[Sequence[Order]] = chain.from_iterable(
        chunks(group, batch_size) for group in groups
    )
    return [list(batch) for batch in batches]


def cost_of(batch: Sequence[Order]) -> float:
    """Return the cost of encoding a batch, in pixels; the same in all processes."""
    return float(max(1, sum(o.latents for o in batch)) * batch[0].image.bucket.area)


def _bucket_of(order: Order) -> Size:
    return order.image.bucket


def see_all(made: Sequence[LatentKeys], cache: LatentCache, peers: CachePeers) -> None:
    """Bring what all processes have written into this one's index; every process must call this.

    Args:
        made: The keys that were made by any process that shares the cache.
        cache: The cache.
        peers: The processes that divide the work.

    Raises:
        StorageError: A key cannot be found, though the process that made it has reported it.
    """
    if peers.number > 1 and peers.is_first:
        _wait_until_seen(made, cache, peers)
    if peers.is_first:
        cache.keep_index()
    if peers.group.size == 1:
        return
    peers.wait()
    if not peers.is_first:
        if len(cache) >= KEPT_FROM:
            cache.reopen()
        _wait_until_seen(made, cache, peers)


def _wait_until_seen(made: Sequence[LatentKeys], cache: LatentCache, peers: CachePeers) -> None:
    missing = list(made)

    def left() -> int:
        cache.refresh()
        missing[:] = [key for key in missing if not is_there(key, cache)]
        return len(missing)

    wait_until_seen(left, cache.folder, peers.group.raise_fault)


def digest_of(table: PlannedTable) -> str:
    """Return a hash of a table's images, captions and crops, in order."""
    digest = hashlib.sha256(f"{len(table)} images".encode())
    for column in (table.codes, table.shapes):
        digest.update(np.ascontiguousarray(column).tobytes())
    for name in ("path", "caption"):
        digest.update(table.records.text_digest(name))
    return digest.hexdigest()
