"""VAE outputs on disk: moments in shards, found by content, so that a stale one cannot be found.

A shard holds pictures of one bucket: `<name>.safetensors` with `mean` and `logvar`, both
[N, 4, h, w], and `<name>.json` with their keys in order. The index is written last, so a shard
without one does not exist. Shards are mapped into memory, never read whole.
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
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from impasto import files
from impasto.data import images
from impasto.data.records import FileStamp, ImageRecord, PlannedImage, SetAside, Size
from impasto.errors import DatasetError
from impasto.progress import Progress, SilentProgress

FORMAT_VERSION = 1
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
    """A folder of shards.

    Args:
        folder: Where the shards are; created when something is written.

    Raises:
        DatasetError: The folder holds a cache of a newer format.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shards: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._rows: dict[str, tuple[str, int]] = {}
        self.hashes = ContentHashes(folder / _HASHES_FILE)
        for index in sorted(folder.glob("shard-*.json")):
            self._add_index(index)

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, keys: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Moments of pictures of one bucket: (mean, logvar), each [len(keys), 4, h, w] as stored.

        Gathered with NumPy, which stays on one core: a second pool of OpenMP threads, which torch
        would make in a loading thread, slows the training thread's by half on a CPU.

        Raises:
            KeyError: A key is not in the cache.
        """
        places = [self._rows[key] for key in keys]
        if len({shard for shard, _ in places}) == 1:
            mean, logvar = self._shard(places[0][0])
            rows = [row for _, row in places]
            return torch.from_numpy(mean[rows]), torch.from_numpy(logvar[rows])
        pairs = [self._shard(shard) for shard, _ in places]
        means = [mean[row] for (mean, _), (_, row) in zip(pairs, places, strict=True)]
        logvars = [logvar[row] for (_, logvar), (_, row) in zip(pairs, places, strict=True)]
        return torch.from_numpy(np.stack(means)), torch.from_numpy(np.stack(logvars))

    def write_shard(self, bucket: Size, keys: Sequence[str], mean: Tensor, logvar: Tensor) -> None:
        """Add a shard, tensors first and index last, each written durably.

        Raises:
            StorageError: The disk is full or the folder cannot be written.
        """
        digest = hashlib.sha256("".join(keys).encode("utf-8")).hexdigest()[:16]
        name = f"shard-{bucket}-{digest}"
        tensors = {
            "mean": mean.to(STORED_DTYPE).contiguous(),
            "logvar": logvar.to(STORED_DTYPE).contiguous(),
        }
        with files.replace_file(self.folder / f"{name}.safetensors") as partial:
            save_file(tensors, partial)
        index = self.folder / f"{name}.json"
        files.write_json(index, {"format_version": FORMAT_VERSION, "keys": list(keys)})
        self._add_index(index)

    def _add_index(self, index: Path) -> None:
        try:
            stored = json.loads(index.read_text(encoding="utf-8"))
            version, keys = stored["format_version"], stored["keys"]
        except (ValueError, KeyError, TypeError):
            return  # without a readable index its pictures are simply encoded again
        if version > FORMAT_VERSION:
            raise DatasetError(
                f"The latent cache {self.folder} was written by a newer Impasto (format {version}; "
                f"this one reads up to {FORMAT_VERSION}). Update Impasto or delete the folder."
            )
        if self._is_whole(index.with_suffix(".safetensors"), len(keys)):
            self._rows.update({key: (index.stem, row) for row, key in enumerate(keys)})

    @staticmethod
    def _is_whole(shard: Path, entries: int) -> bool:
        """Whether the shard's header fits its length and its index; pixels are not read."""
        try:
            with safe_open(shard, framework="pt") as file:
                shapes = [file.get_slice(name).get_shape() for name in ("mean", "logvar")]
        except (SafetensorError, OSError):
            return False
        return bool(shapes[0] == shapes[1] and shapes[0][0] == entries)

    def _shard(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The mapped tensors of a shard as arrays over the same memory."""
        if name not in self._shards:
            with safe_open(self.folder / f"{name}.safetensors", framework="pt") as file:
                mean, logvar = file.get_tensor("mean"), file.get_tensor("logvar")
            self._shards[name] = mean.numpy(), logvar.numpy()
        return self._shards[name]


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
