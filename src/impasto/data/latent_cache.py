"""VAE outputs on disk: moments in shards, found by content, so that a stale one cannot be found.

A shard (`data/shards.py`) holds pictures of one bucket: `mean` and `logvar`, both [N, 4, h, w].
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from impasto import files
from impasto.data import images
from impasto.data.records import FileStamp, ImageRecord, PlannedImage, SetAside, Size
from impasto.data.shards import Shards
from impasto.errors import DatasetError
from impasto.progress import Progress, SilentProgress

SHARD_ENTRIES = 256
STORED_DTYPE = torch.float16
_HASHES_FILE = "content-hashes.json"

EncodeMoments = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class MomentsEncoder:
    """The VAE as the cache sees it.

    Attributes:
        encode: pixels [B, 3, H, W] in [-1, 1] -> unscaled (mean, logvar), each [B, 4, H/8, W/8].
        fingerprint: A hash of the VAE's weights.
        batch_size: Pictures per call.
    """

    encode: EncodeMoments
    fingerprint: str
    batch_size: int = 1


class ContentHashes:
    """SHA-256 of the pictures' bytes, remembered while size and time of change stay the same."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known: dict[str, tuple[FileStamp, str]] = {}
        if file.is_file():
            try:
                stored = json.loads(file.read_text(encoding="utf-8"))
                self._known = {
                    path: (FileStamp(size, mtime), digest)
                    for path, (size, mtime, digest) in stored.items()
                }
            except (ValueError, TypeError):
                self._known = {}  # only costs reading the pictures again

    def of(self, records: Sequence[ImageRecord]) -> dict[Path, str]:
        """Hash what is new, remember it, and return the hashes of all that can be read."""
        fresh = [r for r in records if self._known.get(str(r.path), (None,))[0] != r.stamp]
        with ThreadPoolExecutor(4) as pool:
            for record, digest in zip(fresh, pool.map(_hash_or_none, fresh), strict=True):
                if digest is not None:
                    self._known[str(record.path)] = (record.stamp, digest)
        if fresh:
            rows = {p: [s.size_bytes, s.mtime_ns, d] for p, (s, d) in self._known.items()}
            files.write_text(self._file, json.dumps(rows, ensure_ascii=False))
        return {r.path: self._known[str(r.path)][1] for r in records if str(r.path) in self._known}


def _hash_or_none(record: ImageRecord) -> str | None:
    try:
        return files.sha256_of(record.path)
    except OSError:
        return None  # the encoder meets the same fault and reports it with the reason


def latent_key(content_hash: str, planned: PlannedImage, vae_fingerprint: str) -> str:
    """The name of a latent: a hash over all that its numbers depend on, in 32 hex digits."""
    crop = planned.crop
    parts = (
        content_hash,
        f"{planned.resized}+{crop.left}+{crop.top}+{crop.size}",
        "flip=0",
        vae_fingerprint,
        f"preprocessing={images.PREPROCESSING_VERSION}",
    )
    return hashlib.sha256("/".join(parts).encode("utf-8")).hexdigest()[:32]


class LatentCache:
    """A folder of shards with the moments of encoded pictures.

    Args:
        folder: Where the shards are; created when something is written.

    Raises:
        DatasetError: The folder holds a cache of a newer format.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shards = Shards(folder, ("mean", "logvar"), "latent cache")
        self.hashes = ContentHashes(folder / _HASHES_FILE)

    def __contains__(self, key: str) -> bool:
        return key in self._shards

    def __len__(self) -> int:
        return len(self._shards)

    def read(self, keys: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Moments of pictures of one bucket: (mean, logvar), each [len(keys), 4, h, w] as stored.

        Raises:
            KeyError: A key is not in the cache.
        """
        mean, logvar = self._shards.read(keys)
        return torch.from_numpy(mean), torch.from_numpy(logvar)

    def write_shard(self, bucket: Size, keys: Sequence[str], mean: Tensor, logvar: Tensor) -> None:
        """Add the moments of pictures of one bucket.

        Raises:
            StorageError: The disk is full or the folder cannot be written.
        """
        columns = {"mean": mean.to(STORED_DTYPE), "logvar": logvar.to(STORED_DTYPE)}
        self._shards.write(str(bucket), keys, columns)


@dataclass(frozen=True)
class CachedPlan:
    """Planned pictures with the keys of their latents, and those that could not be encoded."""

    images: tuple[PlannedImage, ...]
    keys: tuple[str, ...]
    set_aside: tuple[SetAside, ...]
    encoded: int


def cache_latents(
    planned: Sequence[PlannedImage],
    cache: LatentCache,
    encoder: MomentsEncoder,
    progress: Progress | None = None,
) -> CachedPlan:
    """Encode the pictures that the cache does not hold; set aside those that cannot be decoded.

    Killed at any moment, it loses at most the shard that it was filling.

    Raises:
        DatasetError: No picture is left.
        StorageError: The disk is full or the folder cannot be written.
    """
    progress = progress or SilentProgress()
    files.remove_leftovers(cache.folder)
    digests = cache.hashes.of([image.record for image in planned])
    key_of = {
        image: latent_key(digests[image.record.path], image, encoder.fingerprint)
        for image in planned
        if image.record.path in digests
    }
    missing = list({key: image for image, key in key_of.items() if key not in cache}.values())
    failures = [
        SetAside(image.record.path, "vanished or became unreadable")
        for image in planned
        if image not in key_of
    ]
    if missing:
        with progress.stage("Encoding latents", len(missing), "pictures") as advance:
            for bucket, group in groupby(sorted(missing, key=_bucket_of), key=_bucket_of):
                failures += _encode_bucket(bucket, list(group), key_of, cache, encoder, advance)
    kept = [image for image in planned if key_of.get(image, "") in cache]
    if not kept:
        reasons = "; ".join(f"{item.path.name}: {item.reason}" for item in failures[:3])
        raise DatasetError(f"None of the {len(planned)} pictures could be decoded ({reasons}).")
    keys = tuple(key_of[image] for image in kept)
    return CachedPlan(tuple(kept), keys, tuple(failures), len(missing) - len(failures))


def _bucket_of(image: PlannedImage) -> Size:
    return image.bucket


def _encode_bucket(
    bucket: Size,
    pending: list[PlannedImage],
    key_of: dict[PlannedImage, str],
    cache: LatentCache,
    encoder: MomentsEncoder,
    advance: Callable[[int], None],
) -> list[SetAside]:
    """Encode pictures of one bucket into as many shards as it takes; return those that failed."""
    failures: list[SetAside] = []
    for start in range(0, len(pending), SHARD_ENTRIES):
        part = pending[start : start + SHARD_ENTRIES]
        keys, means, logvars = [], [], []
        for group in _decoded_batches(part, encoder.batch_size):
            good = [(image, pixels) for image, pixels in group if isinstance(pixels, np.ndarray)]
            failures += [
                SetAside(image.record.path, reason)
                for image, reason in group
                if isinstance(reason, str)
            ]
            if good:
                mean, logvar = encoder.encode(to_model_range([pixels for _, pixels in good]))
                means.append(mean.float().cpu())
                logvars.append(logvar.float().cpu())
                keys += [key_of[image] for image, _ in good]
            advance(len(group))
        if keys:
            cache.write_shard(bucket, keys, torch.cat(means), torch.cat(logvars))
    return failures


def to_model_range(pixels: Iterable[np.ndarray]) -> Tensor:
    """uint8 pictures [H, W, 3] of one size -> float32 [B, 3, H, W] in [-1, 1]."""
    stacked = torch.from_numpy(np.stack(list(pixels)))
    return stacked.permute(0, 3, 1, 2).float() / 127.5 - 1


def _decoded_batches(
    part: list[PlannedImage], batch_size: int
) -> Iterator[list[tuple[PlannedImage, np.ndarray | str]]]:
    """Decode on threads, one batch ahead of the encoder; a failure comes as its reason."""
    with ThreadPoolExecutor(2) as pool:
        decoded = zip(part, pool.map(_pixels_or_reason, part), strict=True)
        batch: list[tuple[PlannedImage, np.ndarray | str]] = []
        for item in decoded:
            batch.append(item)
            if len(batch) == batch_size:
                yield batch
                batch = []
        if batch:
            yield batch


def _pixels_or_reason(image: PlannedImage) -> np.ndarray | str:
    try:
        return images.read_pixels(image)
    except images.UnreadableImageError as error:
        return str(error)
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
