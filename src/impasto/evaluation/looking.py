"""Goes through images once and keeps what is compared: features, tags, small squares, hashes.

Images come and go in batches; what stays of each is its features and 3 KB of pixels.
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
from impasto.evaluation.network_facts import Looked
from impasto.evaluation.networks import Network
from impasto.progress import Progress

BATCH = 8
_AT_LEAST = Size(512, 512)  # of large JPEGs; no network here takes more than 896, 1.75 times this


@dataclass(frozen=True)
class CaptionedImage:
    """An image to look at: its file, its caption and its crop.

    Attributes:
        path: Its file.
        caption: What it shows; empty where nobody says.
        cut: The part of it that is used.
    """

    path: Path
    caption: str = ""
    cut: Cut | None = None

    @classmethod
    def of(cls, record: ImageRecord) -> CaptionedImage:
        """An image of a dataset, with its caption without what varies."""
        return cls(record.path, record.fixed_caption.strip(), record.cut)


@dataclass(frozen=True)
class Prepared:
    """An image as the networks take it, and what is kept of itself.

    Attributes:
        inputs: For each network.
        square: [SIDE * SIDE * 3] uint8 pixels of a small copy.
        look: Its perceptual hash.
        mirrored_look: That of its mirror image.
        is_flat: Whether it is of one colour all over.
    """

    inputs: tuple[np.ndarray, ...]
    square: np.ndarray
    look: int
    mirrored_look: int
    is_flat: bool


@dataclass(frozen=True)
class Looks:
    """What was seen of some images, in their order.

    Attributes:
        images: Those that could be read.
        features: Name of a network -> [N, D] float32.
        squares: [N, SIDE * SIDE * 3] uint8.
        hashes: [N] uint64 perceptual hashes.
        mirrored_hashes: [N] uint64 those of their mirror images.
        flat: [N] whether an image is of one colour all over.
        tags: Numbers of the tags that the tagger sees in each; None without one.
        unread: Those that could not be read, with reasons.
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
    """Stage: images -> what the networks take; what cannot be read is a failure."""

    networks: tuple[Network, ...]

    def __call__(self, batch: Sequence[CaptionedImage]) -> list[Prepared | Failure]:
        """Decode each once, for all networks."""
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


def look_at(
    images: Sequence[CaptionedImage], networks: Sequence[Network], what: str, progress: Progress
) -> Looks:
    """Look at images with each network.

    Args:
        images: What to look at.
        networks: Of which at most one is a tagger that tells tags.
        what: What they are, for people: `the real images`.
        progress: Shows how far the work is.

    Raises:
        ModelError: A network gives NaN or infinity.
        OutOfMemoryError: Not even one image fits.
    """
    kept = _Kept([[] for _ in networks])
    workers = max(1, default_workers())
    executor = LocalExecutor(Prepare(tuple(networks)), workers=workers)
    with progress.stage(f"Looking at {what}", len(images), "images") as advance:
        for outcomes in executor.run(chunks(images, BATCH)):
            good = [(p, o) for p, o in outcomes if not isinstance(o, Failure)]
            kept.unread += [
                SkippedFile(p.path, o.reason) for p, o in outcomes if isinstance(o, Failure)
            ]
            if good:
                _look_at_batch(good, networks, kept)
            advance(len(outcomes))
    return _looks(kept, networks)


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
                    f"damaged, or it is no network for images of that kind."
                )
            kept.features[number].append(looked.features.astype(np.float32))
        if looked.tags is not None:
            kept.tags += looked.tags
    kept.images += [image for image, _ in batch]
    kept.prepared += [(p.square, p.look, p.mirrored_look, p.is_flat) for _, p in batch]


def _looked(network: Network, inputs: list[np.ndarray]) -> Looked:
    """What a network makes of images; where memory runs out, half as many at once."""
    try:
        return network.look(inputs)
    except (torch.OutOfMemoryError, MemoryError) as error:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(inputs) == 1:
            raise OutOfMemoryError(
                f"Memory ran out while {network.facts.name} looked at a single image. Take a "
                f"smaller feature network."
            ) from error
    half = len(inputs) // 2
    halves = [_looked(network, inputs[:half]), _looked(network, inputs[half:])]
    first = halves[0]
    return Looked(
        None if first.features is None else np.concatenate([p.features for p in halves]),
        None if first.tags is None else [tags for one in halves for tags in one.tags or ()],
    )


def _looks(kept: _Kept, networks: Sequence[Network]) -> Looks:
    named = zip(networks, kept.features, strict=True)
    count = len(kept.images)
    squares, hashes, mirrored, flat = zip(*kept.prepared, strict=True) if count else ((),) * 4
    return Looks(
        tuple(kept.images),
        {net.facts.name: np.concatenate(batches) for net, batches in named if batches},
        np.stack(squares) if count else np.empty((0, SIDE * SIDE * 3), np.uint8),
        np.array(hashes, np.uint64),
        np.array(mirrored, np.uint64),
        np.array(flat, np.bool_),
        kept.tags or None,
        tuple(kept.unread),
    )
