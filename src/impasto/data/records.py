"""The states of an image on its way to a batch; each function of this package goes between two.

file --scan--> ImageRecord --plan--> PlannedImage --encode--> LoadedMoments --collate--> Batch
"""

from __future__ import annotations

import contextlib
import gc
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from impasto.data.captions import TrainingPosition, join_caption_and_tags
from impasto.data.subsets import PLAIN, Subset
from impasto.member_paths import is_member, plain

if TYPE_CHECKING:
    from torch import Tensor

    from impasto.diffusion.conditioning import Conditioning
    from impasto.diffusion.randomness import PerSampleRandomness


CELL = 8
"""Pixels of the image per side of a latent cell."""

CHANNELS = 4
"""Numbers of a latent cell."""


@dataclass(frozen=True, order=True, slots=True)
class Size:
    """Width and height in pixels (or latent cells), always in this order."""

    width: int
    height: int

    @property
    def area(self) -> int:
        """The number of pixels, or of latent cells."""
        return self.width * self.height

    @property
    def aspect(self) -> float:
        """The aspect ratio, width over height."""
        return self.width / self.height

    @property
    def wh(self) -> tuple[int, int]:
        """(width, height), the order of Pillow."""
        return self.width, self.height

    @property
    def hw(self) -> tuple[int, int]:
        """(height, width), the order of torch and NumPy."""
        return self.height, self.width

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in pixels: offset of its top left corner, and size."""

    left: int
    top: int
    size: Size

    @property
    def ltrb(self) -> tuple[int, int, int, int]:
        """(left, top, right, bottom), as Pillow's `crop` takes it."""
        return self.left, self.top, self.left + self.size.width, self.top + self.size.height


@dataclass(frozen=True, slots=True)
class Cut:
    """The part of an image that is the image, by a crop of one's own (`cuts.py`).

    Attributes:
        whole: Upright size of the image in its file.
        box: The part that is used.
    """

    whole: Size
    box: Box


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where the pixels of a sample come from.

    Attributes:
        original: Size of the image in its file, as a person sees it, or of the crop of one's own
            that is used of it.
        crop: What of the resized image the sample shows; its size is the bucket's.
    """

    original: Size
    crop: Box

    @property
    def target(self) -> Size:
        """The size that is trained on, or drawn."""
        return self.crop.size

    @property
    def numbers(self) -> tuple[int, int, int, int, int, int]:
        """Original height and width, top and left of the crop, target height and width.

        In pixels, in the order of diffusers' `add_time_ids` for SDXL.
        """
        return (*self.original.hw, self.crop.top, self.crop.left, *self.target.hw)

    @classmethod
    def whole(cls, size: Size) -> Geometry:
        """Of an image that was never resized or cropped, as one that is drawn."""
        return cls(size, Box(0, 0, size))


@dataclass(frozen=True, slots=True)
class FileStamp:
    """What tells a changed file from an unchanged one without reading it."""

    size_bytes: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image that can be read, with its captions and tags.

    The content's hash is not part of it: that takes reading the whole file, which only caching does
    (`content_hashes.ContentHashes`).

    Attributes:
        path: The file.
        size: The size as a person sees it, after EXIF rotation; that of `cut`, where it has one.
        stamp: What tells whether the file has changed.
        caption: Prose, perhaps on several lines: the `.caption`, or metadata's `caption`.
        tags: The `.txt` beside the image, or metadata's `tags`.
        rotated: Whether EXIF says that the stored pixels are turned or mirrored.
        wanted: The bucket that metadata names (`train_resolution`).
        subset: How it is used.
        cut: The part of it that is used; None for all of it.
        class_tokens: Its words where it has no others: its subset's, if it has no caption file.
        extra_repeats: Showings in an epoch beyond those of its subset, which balance
            regularisation images.
    """

    path: Path
    size: Size
    stamp: FileStamp
    caption: str = ""
    tags: str = ""
    rotated: bool = False
    wanted: Size | None = None
    subset: Subset = PLAIN
    cut: Cut | None = None
    class_tokens: str = ""
    extra_repeats: int = 0

    @property
    def repeats(self) -> int:
        """How often the image comes in an epoch."""
        return self.subset.repeats + self.extra_repeats

    @property
    def whole(self) -> Size:
        """The upright size of the image in its file, whatever part of it is used."""
        return self.cut.whole if self.cut else self.size

    @property
    def own_caption_text(self) -> str:
        """Caption and tags joined, before the subset's rules; perhaps on several lines."""
        return join_caption_and_tags(self.caption, self.tags, self.subset.captions.separator)

    @property
    def caption_text(self) -> str:
        """The image's own words, or those of its class where it has none."""
        return caption_or_class(self.own_caption_text, self.class_tokens)

    @property
    def fixed_caption(self) -> str:
        """The caption without chance: for validation and for counting tokens."""
        return self.subset.captions.steady().write(self.caption_text, STEADY, 0, self.name)

    @property
    def name(self) -> str:
        """The path below the subset's folder, with slashes: the same on every machine.

        Random numbers follow from it, and macOS may hand over another Unicode form.
        """
        return unicodedata.normalize("NFC", self.file_name)

    @property
    def file_name(self) -> str:
        """The image's name as the file system spells it, by which the file is found again."""
        path = Path(plain(self.path)) if is_member(self.path) else self.path
        try:
            return path.relative_to(self.subset.root).as_posix()
        except ValueError:
            return path.as_posix()


STEADY = TrainingPosition(1, 0, 1)
"""The position in the training that captions without chance are written for."""


def caption_or_class(own: str, class_tokens: str) -> str:
    """The words of an image, or those of its class where it has none of its own."""
    return own if own.strip() else class_tokens or own


@dataclass(frozen=True, slots=True)
class SkippedFile:
    """A file that will not be used, and the reason in words.

    Attributes:
        path: It.
        reason: Why it is not used.
        is_unread: Whether it, or its words, could not be read this time, which says nothing of
            what is in it.
    """

    path: Path
    reason: str
    is_unread: bool = False


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """Geometry alone: resize the image to `resized`, then take `crop`, which fills `bucket`."""

    record: ImageRecord
    bucket: Size
    resized: Size
    crop: Box

    @property
    def cropped_fraction(self) -> float:
        """The share of the image that the crop removes, in [0, 1)."""
        return 1 - self.bucket.area / self.resized.area

    def geometry(self, *, mirrored: bool = False) -> Geometry:
        """Where the pixels come from, of the image or of its mirror image."""
        crop = self.crop
        if mirrored:
            right = self.resized.width - crop.left - crop.size.width
            crop = Box(right, crop.top, crop.size)
        return Geometry(self.record.size, crop)


@dataclass(frozen=True, slots=True)
class Batch:
    """The input of one micro-step.

    Attributes:
        latents: [B, 4, h, w] float32, drawn from the posterior and **scaled**.
        captions: B texts; an empty one where the caption was dropped.
        weights: [B] weights of the samples in the loss: that of their subset, times
            `prior_loss_weight` for regularisation images; zero for a rank that has nothing to do.
        randomness: The source of this batch's random numbers.
        geometry: Where each sample's pixels come from.
        mask: [B, 1, h, w] weights in [0, 1] of the places in the loss; None where all are 1.
        conditioning: What the U-Net is told of the batch, where that was made ahead.
        keeps: [B] whether a sample is a regularisation image; None where none is.
    """

    latents: Tensor
    captions: tuple[str, ...]
    weights: Tensor
    randomness: PerSampleRandomness
    geometry: tuple[Geometry, ...]
    mask: Tensor | None = None
    conditioning: Conditioning | None = None
    keeps: Tensor | None = None


@contextlib.contextmanager
def no_cycle_collection() -> Iterator[None]:
    """Spare Python's collector while many small objects are made, none of them in a cycle.

    It would look at all of them dozens of times: 40 percent of a second scan.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
