"""Renders planned images to the pixels that the VAE sees, and to their weights in the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image

from impasto.data.engines.stages import Failure
from impasto.data.folders.masks import mask_file
from impasto.data.pixels import images
from impasto.data.pixels.cuts import cut_out
from impasto.data.pixels.images import UnreadableImageError
from impasto.data.records import CELL, ImageRecord, PlannedImage, Size

_FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "linear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "cubic": Image.Resampling.BICUBIC,
    "area": Image.Resampling.BOX,
    "box": Image.Resampling.BOX,
}
_ASPECT_TOLERANCE = 0.02

I = TypeVar("I")  # noqa: E741 - an item
O = TypeVar("O")  # noqa: E741 - an outcome


@dataclass(frozen=True, slots=True)
class Rendered:
    """An image as training uses it, before mirroring: resized and cropped.

    Attributes:
        image: The planned image, with the crop that was used.
        pixels: uint8 [height, width, 3].
        mask: Weights, uint8 [height / 8, width / 8], or None.
    """

    image: PlannedImage
    pixels: np.ndarray
    mask: np.ndarray | None


class Render:
    """Stage that turns planned images into `Rendered`; an undecodable image is a failure."""

    def __call__(self, batch: Sequence[PlannedImage]) -> list[Rendered | Failure]:
        """Render a batch of images."""
        return [_or_failure(render, image) for image in batch]


class Decode:
    """Stage that turns records into decoded sizes, to find faults that headers do not show."""

    def __call__(self, batch: Sequence[ImageRecord]) -> list[Size | Failure]:
        """Decode a batch of images."""
        return [_or_failure(decoded_size, record) for record in batch]


def render(image: PlannedImage) -> Rendered:
    """Decode, resize and crop one planned image, and its mask if its subset has one.

    Raises:
        UnreadableImageError: The image or its mask cannot be read, or has changed since the scan.
    """
    record, masks = image.record, image.record.subset.masks
    wants_alpha = masks is not None and masks.alpha
    at_least = None if record.cut else image.resized  # manual crops need the whole image
    opened, alpha = images.read_image(record.path, at_least=at_least, with_alpha=wants_alpha)
    require_scanned_size(opened, record)
    seen = cut_out(opened, record.cut)
    shown = _resized_and_cropped(seen, image, _FILTERS[record.subset.interpolation])
    return Rendered(image, np.asarray(shown), None if masks is None else _mask(image, alpha))


def decoded_size(record: ImageRecord) -> Size:
    """Decode an image, and return its size.

    Raises:
        UnreadableImageError: The image cannot be read, or its size differs from its header's.
    """
    opened = images.read_rgb(record.path)
    require_scanned_size(opened, record)
    return Size(*opened.size)


def _or_failure(work: Callable[[I], O], item: I) -> O | Failure:
    try:
        return work(item)
    except (UnreadableImageError, OSError) as error:
        return images.failure_of(error)


def require_scanned_size(opened: Image.Image, record: ImageRecord) -> None:
    """Check that a decoded image, whole or at a half to an eighth, has the size that was scanned.

    Raises:
        UnreadableImageError: The image has another size.
    """
    found = Size(*opened.size)
    for scale in (1, 2, 4, 8):
        if found == Size(-(-record.whole.width // scale), -(-record.whole.height // scale)):
            return
    raise UnreadableImageError(
        f"it is {found}, but its header says {record.whole}: it was changed, or its EXIF data is "
        f"stored after its pixels; save it again"
    )


def _mask(image: PlannedImage, alpha: Image.Image | None) -> np.ndarray:
    """Return weights per latent cell: the mean over each 8x8 pixels; 255 without any mask.

    Raises:
        UnreadableImageError: The mask file cannot be read, or has another aspect ratio.
    """
    cells = np.full((image.crop.size.height, image.crop.size.width), 255.0, dtype=np.float32)
    if alpha is not None:
        cells *= _cropped(cut_out(alpha, image.record.cut), image) / 255
    file = mask_file(image.record)
    if file is not None:
        drawn = images.read_mask(file)
        aspect = drawn.width / drawn.height
        whole = image.record.whole
        if abs(aspect / whole.aspect - 1) > _ASPECT_TOLERANCE:
            raise UnreadableImageError(
                f"its mask {file} is {drawn.width}x{drawn.height}, but the image is {whole}; "
                f"expected the same aspect ratio"
            )
        cells *= _cropped(cut_out(drawn, image.record.cut), image) / 255
    height, width = cells.shape
    means = cells.reshape(height // CELL, CELL, width // CELL, CELL).mean(axis=(1, 3))
    return np.asarray((means + 0.5).astype(np.uint8))


def _cropped(grey: Image.Image, image: PlannedImage) -> np.ndarray:
    cut = _resized_and_cropped(grey, image, Image.Resampling.BILINEAR)
    return np.asarray(cut, dtype=np.float32)


def _resized_and_cropped(
    opened: Image.Image, image: PlannedImage, resample: Image.Resampling
) -> Image.Image:
    """Resize only the part that the crop retains, so that 20000x1 needs no gigabytes."""
    if opened.size == image.resized.wh:
        return opened.crop(image.crop.ltrb)
    by_x, by_y = opened.width / image.resized.width, opened.height / image.resized.height
    left, top, right, bottom = image.crop.ltrb
    box = (
        left * by_x,
        top * by_y,
        min(right * by_x, opened.width),
        min(bottom * by_y, opened.height),
    )
    return opened.resize(image.crop.size.wh, resample, box=box)
