"""Imports latents of sd-scripts into the latent cache, and exports cached ones for sd-scripts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from impasto import storage_errors
from impasto.data.caching.latent_cache import (
    CachedPlan,
    LatentCache,
    LatentKeys,
    latent_key,
)
from impasto.data.caching.latent_orders import read_fault
from impasto.data.caching.latent_writing import ShardWriter, shard_writer
from impasto.data.caching.npz import (
    SD_ENDINGS,
    WITH_CROP,
    npz_candidates,
    npz_file,
    read_npz,
    write_npz,
)
from impasto.data.engines.stages import Failure
from impasto.data.records import PlannedImage, SkippedFile
from impasto.errors import StorageError
from impasto.progress import Advance, Progress
from impasto.write_targets import why_not_written


def import_npz(
    planned: Sequence[PlannedImage],
    keys: list[LatentKeys | None],
    digests: dict[Path, str],
    cache: LatentCache,
    progress: Progress,
    endings: Sequence[str] = SD_ENDINGS,
    unread: Collection[Path] = (),
) -> list[SkippedFile]:
    """Import fitting latents of sd-scripts and update `keys`; return the files that do not fit.

    Args:
        planned: The images.
        keys: The keys of each image; replaced for images whose latents are imported.
        digests: The hashes of files.
        cache: Where the latents are stored.
        progress: Shows the progress.
        endings: Endings of file names that the model uses.
        unread: Files that exist but could not be hashed.
    """
    missed = (f for i in (planned if unread else ()) for f in _npz_files_of(i, unread, endings))
    refused = [SkippedFile(f, f"cannot be read{read_fault(f)}") for f in dict.fromkeys(missed)]
    able = [
        i
        for i, key in enumerate(keys)
        if key is not None and key.plain and _npz_files_of(planned[i], digests, endings)
    ]
    if not able:
        return refused
    with progress.stage("Looking for sd-scripts' latents", len(planned), "images") as advance:
        owners = _owners(planned, lambda image: npz_candidates(image, endings), advance)
    with (
        progress.stage("Reading sd-scripts' latents", len(able), "images") as advance,
        shard_writer(cache) as writer,
    ):
        for i in sorted(able, key=lambda i: planned[i].bucket):
            own = keys[i]
            assert own is not None  # noqa: S101 - `able` has only images with keys
            for file in _npz_files_of(planned[i], digests, endings):
                shared = why_shared(owners[file])
                taken = shared or _from_npz(file, digests, planned[i], own, cache, writer)
                if isinstance(taken, LatentKeys):
                    keys[i] = taken
                    break
                refused.append(SkippedFile(file, taken.reason))
            advance(1)
    return refused


@dataclass(frozen=True)
class Exported:
    """The outcome of an export.

    Attributes:
        written: Number of files written.
        refused: Images without a file, with reasons.
    """

    written: int
    refused: tuple[SkippedFile, ...]

    @property
    def warning(self) -> str:
        """A sentence about files that hold less than they could; empty if there are none."""
        return ""


def export_latents(
    plan: CachedPlan,
    cache: LatentCache,
    progress: Progress,
    endings: Sequence[str] = SD_ENDINGS,
) -> Exported:
    """Write cached latents beside their images as today's sd-scripts does.

    A file holds one sample, while the cache has moments: the mean is written, which is likeliest.
    Images that would share one file get none: sd-scripts would train all on the latents of one.

    Raises:
        StorageError: The disk is full.
    """
    written, refused = 0, []
    owners = _owners(plan.images, lambda image: [npz_file(image, endings)])
    with progress.stage("Writing .npz", len(plan.images), "files") as advance:
        for image, key in zip(plan.images, plan.keys, strict=True):
            outcome = _export(image, key, owners, cache, endings)
            if outcome is None:
                written += 1
            else:
                refused.append(SkippedFile(image.record.path, outcome.reason))
            advance(1)
    return Exported(written, tuple(dict.fromkeys(refused)))


def _export(
    image: PlannedImage,
    key: LatentKeys,
    owners: dict[Path, set[Path]],
    cache: LatentCache,
    endings: Sequence[str],
) -> Failure | None:
    """Write one image's latents; return None, or the reason why they were not written."""
    if not key.plain:
        return Failure("no .npz: it changes each time that it is shown")
    if image.record.cut:
        return Failure(f"no .npz: {WITH_CROP}")
    file = npz_file(image, endings)
    shared = why_shared(owners[file])
    if shared is not None:
        return shared
    record = image.record
    fault = why_not_written(file, [record.path.parent, record.subset.root])
    if fault:
        return Failure(f"no .npz: {fault}")
    latents = cache.read([key.plain])[0][0].numpy()
    flipped = cache.read([key.flipped])[0][0].numpy() if key.flipped else None
    try:
        write_npz(image, latents, flipped, endings)
    except StorageError as error:
        if not storage_errors.is_file_specific(error):
            raise
        return Failure(f"no .npz: it cannot be written ({storage_errors.cause_of(error)})")
    return None


def _owners(
    planned: Sequence[PlannedImage],
    files_of: Callable[[PlannedImage], Iterable[Path]],
    advance: Advance = lambda _: None,
) -> dict[Path, set[Path]]:
    """Return file of latents -> the images it may have been made from."""
    owners: dict[Path, set[Path]] = {}
    for image in planned:
        for file in files_of(image):
            owners.setdefault(file, set()).add(image.record.path)
        advance(1)
    return owners


def why_shared(images: set[Path]) -> Failure | None:
    """Return why a file cannot be used if it belongs to several images; None if it has only one."""
    if len(images) < 2:
        return None
    names = " and ".join(sorted(str(path) for path in images)[:3])
    return Failure(
        f"one .npz belongs to {names}, whose names differ only in extension or folder; rename all "
        f"but one"
    )


def _npz_files_of(
    image: PlannedImage, there: Container[Path], endings: Sequence[str]
) -> list[Path]:
    """Return the files of sd-scripts for an image that exist; none unless its subset reads them.

    Args:
        image: The image.
        there: The files that exist.
        endings: Endings of file names that the model uses.
    """
    if not image.record.subset.reads_npz:
        return []
    return [file for file in dict.fromkeys(npz_candidates(image, endings)) if file in there]


def npz_keys(
    image: PlannedImage, digests: dict[Path, str], endings: Sequence[str] = SD_ENDINGS
) -> list[LatentKeys]:
    """Return the keys that an image's latents get when they are imported from sd-scripts' files.

    Args:
        image: The image; without a hash in `digests` it has no keys.
        digests: The hashes of files.
        endings: Endings of file names that the model uses.
    """
    if image.record.path not in digests:
        return []
    return [_npz_key(f, digests, image) for f in _npz_files_of(image, digests, endings)]


def _npz_key(file: Path, digests: dict[Path, str], image: PlannedImage) -> LatentKeys:
    content, source = digests[image.record.path], f"npz:{digests[file]}"
    plain, flipped = (latent_key(content, image, source, flip=flip) for flip in (False, True))
    return LatentKeys(plain, flipped)


def _from_npz(
    file: Path,
    digests: dict[Path, str],
    image: PlannedImage,
    own: LatentKeys,
    cache: LatentCache,
    writer: ShardWriter,
) -> LatentKeys | Failure:
    """Return the keys of an image's latents from a file, and write those that the cache lacks."""
    of_file = _npz_key(file, digests, image)
    plain, flipped = of_file.plain, of_file.flipped if own.flipped else ""
    if plain in cache and (not flipped or flipped in cache):
        return LatentKeys(plain, flipped, own.mask)
    read = read_npz(file, image)
    if isinstance(read, Failure):
        return read
    writer.add_latents(image.bucket, plain, torch.from_numpy(read.latents))
    if not own.flipped:
        return LatentKeys(plain, "", own.mask)
    if read.flipped is None:  # the mirror image is encoded by the VAE
        return LatentKeys(plain, own.flipped, own.mask)
    writer.add_latents(image.bucket, flipped, torch.from_numpy(read.flipped))
    return LatentKeys(plain, flipped, own.mask)
