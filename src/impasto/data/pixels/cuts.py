"""Crops of one's own: a file beside an image says which rectangle of it is the image.

`cat.jpg.crop.json` belongs to `cat.jpg`. It is JSON with the rectangle in pixels of the image as a
person sees it, after EXIF rotation, and the size of the image that it was chosen for:

    {"image_width": 4000, "image_height": 3000, "x": 900, "y": 0, "width": 2100, "height": 3000}

For training the image is that rectangle and nothing else: bucket, resize and crop begin from it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from PIL import Image

from impasto import files, storage_errors
from impasto.data.folders.listing import CROP
from impasto.data.pixels.images import UnreadableImageError, read_header
from impasto.data.planning.plan import BucketRules, plan_images
from impasto.data.records import CELL, Box, Cut, FileStamp, ImageRecord, PlannedImage, Size
from impasto.errors import DatasetError
from impasto.parsing import parse_json
from impasto.remote_paths import is_remote, require_local
from impasto.storage import objects
from impasto.write_targets import why_not_written

SMALLEST = CELL
"""The shortest side of a crop in pixels: one latent cell."""

_KEYS = ("image_width", "image_height", "x", "y", "width", "height")
_LARGEST_FILE = 1 << 16  # bytes; six numbers take some hundred
_ADVICE = "choose it anew, or remove it, with impasto dataset crop"


def crop_file(image: Path) -> Path:
    """The file that says which part of an image is used."""
    return image.with_name(image.name + CROP)


def read_cut(file: Path, whole: Size) -> Cut:
    """The rectangle that a file names.

    Args:
        file: As `crop_file` has it.
        whole: The upright size of the image beside it.

    Raises:
        UnreadableImageError: The file is malformed, or its rectangle is none of this image.
    """
    try:
        if is_remote(file):
            content = objects.read(file, 0, _LARGEST_FILE + 1)
        else:
            with file.open("rb") as handle:
                content = handle.read(_LARGEST_FILE + 1)
    except OSError as error:
        reason = f"its crop {file.name} cannot be read ({error.strerror or error})"
        raise UnreadableImageError(reason, is_transient=True) from error
    try:
        values = parse_json(content) if len(content) <= _LARGEST_FILE else None
    except ValueError:
        values = None
    if not isinstance(values, dict) or not all(_is_count(values.get(key)) for key in _KEYS):
        raise UnreadableImageError(
            f"its crop {file.name} is not JSON with whole numbers for {', '.join(_KEYS)}; {_ADVICE}"
        )
    width, height, x, y, wide, high = (values[key] for key in _KEYS)
    made_for, box = Size(width, height), Box(x, y, Size(wide, high))
    fault = why_not_cut(whole, box)
    if made_for != whole:
        fault = f"was chosen for an image of {made_for}, and this one is {whole}"
    if fault:
        raise UnreadableImageError(f"its crop {file.name} {fault}; {_ADVICE}")
    return Cut(whole, box)


def why_not_cut(whole: Size, box: Box) -> str:
    """What is wrong with a rectangle of an image; empty if nothing is."""
    left, top, right, bottom = box.ltrb
    if min(box.size.wh) < SMALLEST:
        return f"is {box.size}, less than {SMALLEST} pixels wide or high"
    if left < 0 or top < 0 or right > whole.width or bottom > whole.height:
        return f"reaches from {left},{top} to {right},{bottom}, outside of the image of {whole}"
    return ""


def cut_out(image: Image.Image, cut: Cut | None) -> Image.Image:
    """The part of an image that is used; all of it where nothing else was chosen.

    Args:
        image: The whole image, or a mask of it, at any size.
        cut: Which part.
    """
    if cut is None:
        return image
    whole, box = cut.whole, cut.box
    if image.size == whole.wh:
        return image.crop(box.ltrb)
    by_x, by_y = image.width / whole.width, image.height / whole.height
    left, top, right, bottom = box.ltrb
    scaled_box = (
        left * by_x,
        top * by_y,
        min(right * by_x, image.width),
        min(bottom * by_y, image.height),
    )
    return image.resize(box.size.wh, Image.Resampling.BILINEAR, box=scaled_box)


def cut_beside(image: Path) -> Cut | None:
    """The part of an image that is used, by the file beside it; None where there is none.

    Raises:
        UnreadableImageError: The image or the file is unreadable, or they do not fit.
    """
    file = crop_file(image)
    return read_cut(file, read_header(image)[0]) if os.path.lexists(file) else None


def write_cut(image: Path, whole: Size, box: Box) -> Path:
    """Have a rectangle be the image from now on.

    Args:
        image: The image.
        whole: Its upright size.
        box: The part of it.

    Returns:
        The file that says so.

    Raises:
        DatasetError: The rectangle is none of the image, or the file is a link that leads out.
        StorageError: The file cannot be written.
    """
    fault = why_not_cut(whole, box)
    if fault:
        raise DatasetError(
            f"The crop {fault}. Give x, y, width and height in pixels of the image as it is seen."
        )
    file = crop_file(image)
    _require_own(file)
    values = (whole.width, whole.height, box.left, box.top, box.size.width, box.size.height)
    files.rewrite_text(
        file, files.json_text(dict(zip(_KEYS, values, strict=True)), indent=2) + "\n"
    )
    return file


def remove_cut(image: Path) -> bool:
    """Have the whole image be used again; False where that was so.

    Raises:
        StorageError: The file cannot be removed, or is in an object store.
    """
    file = crop_file(image)
    require_local(file)
    with storage_errors.reported(file):
        try:
            file.unlink()
        except FileNotFoundError:
            return False
    return True


def bucket_of(
    image: Path, whole: Size, box: Box, resolution: int, rules: BucketRules | None = None
) -> PlannedImage:
    """Where a part of an image would go; without `rules`, by those that hold by default."""
    record = ImageRecord(image, box.size, FileStamp(0, 0), cut=Cut(whole, box))
    return plan_images([record], Size(resolution, resolution), rules or BucketRules()).images[0]


def _require_own(file: Path) -> None:
    fault = why_not_written(file, [file.parent])
    if fault:
        raise DatasetError(f"The crop of {file.parent} is not written: {fault}.")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31
