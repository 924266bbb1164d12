"""Reads images once, and computes what is compared: features, tags, small squares, hashes.

Images are processed in batches; only the features and 3 KB of pixels per image are retained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from impasto.data.engines.stages import Failure, LocalExecutor, chunks, default_workers
from impasto.data.inspecting.likeness import perceptual_hash
from impasto.data.pixels.cuts import cut_out
from impasto.data.pixels.images import UnreadableImageError, failure_of, read_rgb
from impasto.data.records import Cut, ImageRecord, Size, SkippedFile
from impasto.errors import ModelError, OutOfMemoryError
from impasto.evaluation.neighbours import SIDE
from impasto.evaluation.network_facts import NetworkOutput
from impasto.evaluation.networks import Network
from impasto.progress import Progress

BATCH = 8
_AT_LEAST = Size(
    512, 512
)  # decoding size of large JPEGs; no network here takes more than 896, 1.75 times this


@dataclass(frozen=True)
class CaptionedImage:
    """An image to evaluate: its file, caption and crop.

    Attributes:
        path: Its file.
        caption: Its caption; empty if it has none.
        cut: Its crop; None for the whole image.
    """

    path: Path
    caption: str = ""
    cut: Cut | None = None

    @classmethod
    def of(cls, record: ImageRecord) -> CaptionedImage:
        """Return an image of a dataset, with the fixed part of its caption."""
        return cls(record.path, record.fixed_caption.strip(), record.cut)


@dataclass(frozen=True)
class Prepared:
    """An image prepared for the networks, with the data that is compared directly.

    Attributes:
        inputs: The input for each network.
        square: [SIDE * SIDE * 3] uint8 pixels of a small copy.
        look: Its perceptual hash.
        mirrored_look: The perceptual hash of its mirror image.
        is_flat: Whether the whole image has a single colour.
    """

    inputs: tuple[np.ndarray, ...]
    square: np.ndarray
    look: int
    mirrored_look: int
    is_flat: bool


@dataclass(frozen=True)
class ImageFeatures:
    """The features and other data of a set of images, in their order.

    Attributes:
        images: The images that could be read.
        features: Name of a network -> [N, D] float32.
        squares: [N, SIDE * SIDE * 3] uint8 pixels of small copies.
        hashes: [N] uint64 perceptual hashes.
        mirrored_hashes: [N] uint64 perceptual hashes of their mirror images.
        flat: [N] whether the whole image has a single colour.
        tags: Numbers of the tags that the tagger finds in each image; None without a tagger.
        unread: The images that could not be read, with reasons.
    """

    images: tuple[CaptionedImage, ...]
    features: dict[str, np.ndarray]
    squares: np.ndarray
    hashes: np.ndarray
    mirrored_hashes: np.ndarray
    flat: np.ndarray
    tags: list[frozenset[int]] | None
    unread: tuple[SkippedFile, ...] = ()


@dataclass(frozen=True)
class Prepare:
    """Stage: images -> prepared images; an unreadable image gives a failure."""

    networks: tuple[Network, ...]

    def __call__(self, batch: Sequence[CaptionedImage]) -> list[Prepared | Failure]:
        """Decode each image once and prepare it for all networks."""
        return [self._one(source) for source in batch]

    def _one(self, source: CaptionedImage) -> Prepared | Failure:
        try:
            whole = read_rgb(source.path, at_least=None if source.cut else _AT_LEAST)
            image = cut_out(whole, source.cut)
        except (UnreadableImageError, OSError) as error:
            return failure_of(error)
        return Prepared(
            tuple(network.prepare(image) for network in self.networks),
            _square_of(image),
            perceptual_hash(image),
            perceptual_hash(ImageOps.mirror(image)),
            all(low == high for low, high in image.getextrema()),  # type: ignore[misc]
        )


def _square_of(image: Image.Image) -> np.ndarray:
    small = image.resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.uint8).reshape(-1)


@dataclass
class _Kept:
    features: list[list[np.ndarray]]
    tags: list[frozenset[int]] = field(default_factory=list)
    prepared: list[tuple[np.ndarray, int, int, bool]] = field(default_factory=list)
    images: list[CaptionedImage] = field(default_factory=list)
    unread: list[SkippedFile] = field(default_factory=list)


def features_of(
    images: Sequence[CaptionedImage], networks: Sequence[Network], what: str, progress: Progress
) -> ImageFeatures:
    """Run all networks on images.

    Args:
        images: The images.
        networks: The networks, of which at most one is a tagger that reports tags.
        what: A description of the images for the progress line: `the real images`.
        progress: Reports progress.

    Raises:
        ModelError: A network gives NaN or infinity.
        OutOfMemoryError: Memory is too small for a single image.
    """
    kept = _Kept([[] for _ in networks])
    workers = max(1, default_workers())
    executor = LocalExecutor(Prepare(tuple(networks)), workers=workers)
    with progress.stage(f"Examining {what}", len(images), "images") as advance:
        for outcomes in executor.run(chunks(images, BATCH)):
            good = [(p, o) for p, o in outcomes if not isinstance(o, Failure)]
            kept.unread += [
                SkippedFile(p.path, o.reason) for p, o in outcomes if isinstance(o, Failure)
            ]
            if good:
                _look_at_batch(good, networks, kept)
            advance(len(outcomes))
    return _features(kept, networks)


def _look_at_batch(
    batch: Sequence[tuple[CaptionedImage, Prepared]], networks: Sequence[Network], kept: _Kept
) -> None:
    for number, network in enumerate(networks):
        looked = _looked(network, [prepared.inputs[number] for _, prepared in batch])
        if looked.features is not None:
            if not np.isfinite(looked.features).all():
                raise ModelError(
                    f"The feature network {network.facts.name} gives NaN or infinity for an image "
                    f"among {batch[0][0].path.name} to {batch[-1][0].path.name}. Its weights are "
                    f"damaged, or it is not made for such images."
                )
            kept.features[number].append(looked.features.astype(np.float32))
        if looked.tags is not None:
            kept.tags += looked.tags
    kept.images += [image for image, _ in batch]
    kept.prepared += [(p.square, p.look, p.mirrored_look, p.is_flat) for _, p in batch]


def _looked(network: Network, inputs: list[np.ndarray]) -> NetworkOutput:
    """Run a network on prepared images; if memory runs out, on half as many at a time."""
    try:
        return network.look(inputs)
    except (torch.OutOfMemoryError, MemoryError) as error:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(inputs) == 1:
            raise OutOfMemoryError(
                f"Memory ran out while {network.facts.name} processed a single image. Use a "
                f"smaller feature network."
            ) from error
    half = len(inputs) // 2
    halves = [_looked(network, inputs[:half]), _looked(network, inputs[half:])]
    first = halves[0]
    return NetworkOutput(
        None if first.features is None else np.concatenate([p.features for p in halves]),
        None if first.tags is None else [tags for one in halves for tags in one.tags or ()],
    )


def _features(kept: _Kept, networks: Sequence[Network]) -> ImageFeatures:
    named = zip(networks, kept.features, strict=True)
    count = len(kept.images)
    squares, hashes, mirrored, flat = zip(*kept.prepared, strict=True) if count else ((),) * 4
    return ImageFeatures(
        tuple(kept.images),
        {net.facts.name: np.concatenate(batches) for net, batches in named if batches},
        np.stack(squares) if count else np.empty((0, SIDE * SIDE * 3), np.uint8),
        np.array(hashes, np.uint64),
        np.array(mirrored, np.uint64),
        np.array(flat, np.bool_),
        kept.tags or None,
        tuple(kept.unread),
    )
