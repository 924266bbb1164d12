"""Latents of sd-scripts into the latent cache, and out of it again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from impasto.data.latent_cache import (
    CachedPlan,
    LatentCache,
    LatentKeys,
    ShardWriter,
    latent_key,
)
from impasto.data.npz import npz_candidates, read_npz, write_npz
from impasto.data.records import PlannedImage, SetAside
from impasto.data.stages import Failure
from impasto.progress import Progress


def take_npz(
    planned: Sequence[PlannedImage],
    keys: list[LatentKeys | None],
    digests: dict[Path, str],
    cache: LatentCache,
    progress: Progress,
) -> list[SetAside]:
    """Put fitting latents of sd-scripts into the cache, their keys into `keys`; name the rest."""
    able = [
        i
        for i, key in enumerate(keys)
        if key is not None and key.plain and _latents_beside(planned[i], digests)
    ]
    refused: list[SetAside] = []
    writer = ShardWriter(cache)
    with progress.stage("Reading sd-scripts' latents", len(able), "pictures") as advance:
        for i in sorted(able, key=lambda i: planned[i].bucket):
            own = keys[i]
            assert own is not None  # noqa: S101 - those without are not able
            for file in _latents_beside(planned[i], digests):
                taken = _from_npz(file, digests, planned[i], own, cache, writer)
                if isinstance(taken, LatentKeys):
                    keys[i] = taken
                    break
                refused.append(SetAside(file, taken.reason))
            advance(1)
    writer.write()
    return refused


def export_latents(plan: CachedPlan, cache: LatentCache, progress: Progress) -> int:
    """Write the latents beside their pictures as today's sd-scripts does; returns how many.

    A file holds one sample where the cache has moments: the mean, which is the likeliest.

    Raises:
        StorageError: A file could not be written.
    """
    done = 0
    with progress.stage("Writing .npz", len(plan.images), "files") as advance:
        for image, key in zip(plan.images, plan.keys, strict=True):
            if key.plain:
                latents = cache.read([key.plain])[0][0].numpy()
                flipped = cache.read([key.flipped])[0][0].numpy() if key.flipped else None
                write_npz(image, latents, flipped)
                done += 1
            advance(1)
    return done


def _latents_beside(image: PlannedImage, digests: dict[Path, str]) -> list[Path]:
    """The files that sd-scripts may have left for a picture, if they are to be used."""
    if not image.record.subset.reads_npz:
        return []
    return [file for file in dict.fromkeys(npz_candidates(image)) if file in digests]


def _from_npz(
    file: Path,
    digests: dict[Path, str],
    image: PlannedImage,
    own: LatentKeys,
    cache: LatentCache,
    writer: ShardWriter,
) -> LatentKeys | Failure:
    """The keys of a picture whose latents come from a file; its values are in the cache then."""
    content = digests[image.record.path]
    source = f"npz:{digests[file]}"
    plain = latent_key(content, image, source)
    flipped = latent_key(content, image, source, flip=True) if own.flipped else ""
    if plain in cache and (not flipped or flipped in cache):
        return LatentKeys(plain, flipped, own.mask)
    read = read_npz(file, image)
    if isinstance(read, Failure):
        return read
    writer.add_sample(image.bucket, plain, torch.from_numpy(read.latents))
    if not own.flipped:
        return LatentKeys(plain, "", own.mask)
    if read.flipped is None:  # the mirror image is encoded by the VAE
        return LatentKeys(plain, own.flipped, own.mask)
    writer.add_sample(image.bucket, flipped, torch.from_numpy(read.flipped))
    return LatentKeys(plain, flipped, own.mask)
