"""The keys that a latent cache needs for a dataset's images, so that all others can be pruned.

Finding them writes nothing, since the disk may be full. If a file cannot be read now, its latents
may still be needed, so nothing is pruned.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from impasto import presence
from impasto.data.caching.encoding import ARITHMETICS
from impasto.data.caching.latent_cache import LatentCache, latent_source
from impasto.data.caching.latent_keys import KeyTable, LatentKeys, join_keys
from impasto.data.caching.latent_orders import (
    keys_of,
    portions_of,
    read_fault,
    stamps_of,
    why_unread,
)
from impasto.data.caching.npz import SD_ENDINGS
from impasto.data.caching.npz_exchange import npz_keys
from impasto.data.planning.planned_table import PlannedTable
from impasto.data.records import PlannedImage, SkippedFile
from impasto.errors import DatasetError
from impasto.progress import Progress, counted
from impasto.remote_paths import shown


def keys_of_plan(
    planned: Sequence[PlannedImage],
    cache: LatentCache,
    fingerprint: str,
    progress: Progress,
    endings: Sequence[str] = SD_ENDINGS,
) -> KeyTable:
    """Return all keys that the cache may need for these images, including latents of sd-scripts.

    Keys of every arithmetic of the VAE are included, on whatever device it computed.

    Raises:
        DatasetError: An image, its mask or its latents of sd-scripts cannot be read.
    """
    table = PlannedTable.of(planned)
    sources = [latent_source(fingerprint, arithmetic) for arithmetic in ARITHMETICS]
    found: list[KeyTable] = []
    unread: list[SkippedFile] = []
    for start, end in portions_of(table):
        portion = list(table[start:end])
        stamps = stamps_of(portion, endings)
        digests = cache.hashes.of(stamps, progress, tidy=False)
        of_sources = [[keys_of(image, digests, source) for image in portion] for source in sources]
        of_files = [key for image in portion for key in npz_keys(image, digests, endings)]
        found += [*map(_table_of, of_sources), KeyTable.of(of_files)]
        lost = [image for image, key in zip(portion, of_sources[0], strict=True) if key is None]
        unread += _unread(lost, stamps, digests)
    cache.hashes.tidy()
    require_read(unread)
    return join_keys(found)


def require_read(skipped: Iterable[SkippedFile]) -> None:
    """Raise if files were skipped because they could not be read this time.

    Raises:
        DatasetError: There are such files.
    """
    unread = [item for item in skipped if item.is_unread or presence.is_withheld(item.path)]
    if unread:
        raise DatasetError(
            f"{counted(len(unread), 'files')} of the dataset cannot be read now, so their cached "
            f"latents may still be needed; the first is {shown(unread[0].path)}: "
            f"{unread[0].reason}. Nothing was removed. Check that their disk is mounted and that "
            f"you may read them, or move them out of the dataset, and run this again."
        )


def _table_of(keys: Sequence[LatentKeys | None]) -> KeyTable:
    return KeyTable.of([key for key in keys if key is not None])


def _unread(
    lost: Iterable[PlannedImage], stamps: Iterable[Path], digests: dict[Path, str]
) -> list[SkippedFile]:
    """Return the files without a hash, with reasons: images, masks, latents of sd-scripts."""
    reasons = {path: f"cannot be read{read_fault(path)}" for path in stamps if path not in digests}
    reasons |= {image.record.path: why_unread(image, digests).reason for image in lost}
    return [SkippedFile(path, reason, is_unread=True) for path, reason in reasons.items()]
