"""The states of an image on its way to a batch; most functions of this package link two of them.

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
"""Image pixels per side of one latent cell."""

CHANNELS = 4
"""Channels of the latents."""


@dataclass(frozen=True, order=True, slots=True)
class Size:
    """Width and height in pixels (or latent cells), always in this order."""

    width: int
    height: int

    @property
    def area(self) -> int:
        """The number of pixels or latent cells."""
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
    """A rectangle in pixels: the offset of its top left corner, and its size."""

    left: int
    top: int
    size: Size

    @property
    def ltrb(self) -> tuple[int, int, int, int]:
        """(left, top, right, bottom), the order of Pillow's `crop`."""
        return self.left, self.top, self.left + self.size.width, self.top + self.size.height


@dataclass(frozen=True, slots=True)
class Cut:
    """A manual crop, which stands for the whole image in training (`cuts.py`).

    Attributes:
        whole: Upright size of the image in its file.
        box: The part that is used.
    """

    whole: Size
    box: Box


@dataclass(frozen=True, slots=True)
class Geometry:
    """How the pixels of a sample were cut from its image.

    Attributes:
        original: Size of the image as displayed (after EXIF rotation), or of its manual crop if it
            has one.
        crop: The part of the resized image that the sample shows; its size is the bucket's.
    """

    original: Size
    crop: Box

    @property
    def target(self) -> Size:
        """The size of the sample that is trained on, or of the image that is generated."""
        return self.crop.size

    @property
    def numbers(self) -> tuple[int, int, int, int, int, int]:
        """Original height and width, top and left of the crop, target height and width.

        In pixels, in the order of diffusers' `add_time_ids` for SDXL.
        """
        return (*self.original.hw, self.crop.top, self.crop.left, *self.target.hw)

    @classmethod
    def whole(cls, size: Size) -> Geometry:
        """Return the geometry of an image without resizing or cropping, such as a generated one."""
        return cls(size, Box(0, 0, size))


@dataclass(frozen=True, slots=True)
class FileStamp:
    """Size and modification time of a file, to detect a change without reading the file."""

    size_bytes: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """A readable image, with its caption and tags.

    The content hash is not included: computing it reads the whole file, which only caching does
    (`content_hashes.ContentHashes`).

    Attributes:
        path: The image file.
        size: The size as displayed, after EXIF rotation; that of `cut` if it has one.
        stamp: Size and modification time of the file, which show whether it has changed.
        caption: Prose, possibly of several lines: the `.caption` file, or metadata's `caption`.
        tags: The `.txt` file beside the image, or metadata's `tags`.
        rotated: Whether EXIF says that the stored pixels are rotated or mirrored.
        wanted: The bucket that metadata specifies (`train_resolution`).
        subset: How the image is used.
        cut: The manual crop; None if the whole image is used.
        class_tokens: The caption of an image that has no other: its subset's class tokens if the
            image has no caption file.
        extra_repeats: Repeats per epoch beyond those of its subset, which balance regularisation
            images.
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
        """How often the image is shown in an epoch."""
        return self.subset.repeats + self.extra_repeats

    @property
    def whole(self) -> Size:
        """The upright size of the image in its file, regardless of a manual crop."""
        return self.cut.whole if self.cut else self.size

    @property
    def own_caption_text(self) -> str:
        """Caption and tags joined, before the subset's rules; possibly of several lines."""
        return join_caption_and_tags(self.caption, self.tags, self.subset.captions.separator)

    @property
    def caption_text(self) -> str:
        """The image's own caption and tags, or the class tokens if it has neither."""
        return caption_or_class(self.own_caption_text, self.class_tokens)

    @property
    def fixed_caption(self) -> str:
        """The caption without random changes, used for validation and for counting tokens."""
        return self.subset.captions.steady().write(self.caption_text, STEADY, 0, self.name)

    @property
    def name(self) -> str:
        """The path relative to the subset's folder, with slashes: the same on every machine.

        It is normalized to NFC, as random numbers depend on it and macOS may report another Unicode
        form.
        """
        return unicodedata.normalize("NFC", self.file_name)

    @property
    def file_name(self) -> str:
        """The name relative to the subset's folder, spelled as in the file system."""
        path = Path(plain(self.path)) if is_member(self.path) else self.path
        try:
            return path.relative_to(self.subset.root).as_posix()
        except ValueError:
            return path.as_posix()


STEADY = TrainingPosition(1, 0, 1)
"""The training position for which captions without random changes are written."""


def caption_or_class(own: str, class_tokens: str) -> str:
    """Return an image's own caption, or its class tokens if the caption is blank."""
    return own if own.strip() else class_tokens or own


@dataclass(frozen=True, slots=True)
class SkippedFile:
    """A file that will not be used, with the reason.

    Attributes:
        path: The file.
        reason: Why it is not used, as a text for the user.
        is_unread: Whether the file or its caption could not be read this time, so that nothing is
            known about its content.
    """

    path: Path
    reason: str
    is_unread: bool = False


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """A geometry for an image: resize it to `resized`, then take `crop`, which fills `bucket`."""

    record: ImageRecord
    bucket: Size
    resized: Size
    crop: Box

    @property
    def cropped_fraction(self) -> float:
        """The fraction of the resized image that the crop removes, in [0, 1)."""
        return 1 - self.bucket.area / self.resized.area

    def geometry(self, *, mirrored: bool = False) -> Geometry:
        """Return where the sample's pixels come from in the image, or in its mirror image."""
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
        captions: B captions; empty if the caption was dropped.
        weights: [B] weights of the samples in the loss: that of their subset, times
            `prior_loss_weight` for regularisation images; zero on a rank without work.
        randomness: The source of this batch's random numbers.
        geometry: Which part of its image each sample shows.
        mask: [B, 1, h, w] weights in [0, 1] of latent cells in the loss; None if all are 1.
        conditioning: The U-Net's conditioning of the batch; None if it is not precomputed.
        keeps: [B] whether a sample is a regularisation image; None if none is.
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
    """Disable Python's garbage collector while many small objects without cycles are created.

    The collector would otherwise traverse all of them dozens of times: 40 percent of a second scan.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
