"""Manual crops: a file beside an image names the rectangle of it to use.

`cat.jpg.crop.json` belongs to `cat.jpg`. It is JSON with the rectangle in pixels of the image as it
is seen, after EXIF rotation, and the size of the image that it was chosen for:

    {"image_width": 4000, "image_height": 3000, "x": 900, "y": 0, "width": 2100, "height": 3000}

For training, that rectangle is the image: bucket, resize and crop are computed from it.
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
_LARGEST_FILE = 1 << 16  # bytes; six numbers take a few hundred
_ADVICE = "choose it again, or remove it, with impasto dataset crop"


def crop_file(image: Path) -> Path:
    """Return the path of the file that names the part of an image to use."""
    return image.with_name(image.name + CROP)


def read_cut(file: Path, whole: Size) -> Cut:
    """Read the rectangle from a crop file.

    Args:
        file: The file that `crop_file` returns.
        whole: The upright size of the image beside it.

    Raises:
        UnreadableImageError: The file is malformed, or its rectangle does not fit the image.
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
    """Return what is wrong with a rectangle of an image; an empty string if nothing is."""
    left, top, right, bottom = box.ltrb
    if min(box.size.wh) < SMALLEST:
        return f"is {box.size}, less than {SMALLEST} pixels wide or high"
    if left < 0 or top < 0 or right > whole.width or bottom > whole.height:
        return f"reaches from {left},{top} to {right},{bottom}, outside of the image of {whole}"
    return ""


def cut_out(image: Image.Image, cut: Cut | None) -> Image.Image:
    """Return the part of an image that is used; all of it if there is no manual crop.

    Args:
        image: The whole image, or a mask of it, at any size.
        cut: The manual crop, or None.
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
    """Return the manual crop in the file beside an image; None if there is no such file.

    Raises:
        UnreadableImageError: The image or the file is unreadable, or they do not match.
    """
    file = crop_file(image)
    return read_cut(file, read_header(image)[0]) if os.path.lexists(file) else None


def write_cut(image: Path, whole: Size, box: Box) -> Path:
    """Write a manual crop file, so that only this rectangle of an image is used from now on.

    Args:
        image: The image.
        whole: Its upright size.
        box: The rectangle to use.

    Returns:
        The file written.

    Raises:
        DatasetError: The rectangle is not within the image, or the file is a link that leads out.
        StorageError: The file cannot be written.
    """
    fault = why_not_cut(whole, box)
    if fault:
        raise DatasetError(
            f"The crop {fault}. Give x, y, width and height in pixels, after EXIF rotation."
        )
    file = crop_file(image)
    _require_own(file)
    values = (whole.width, whole.height, box.left, box.top, box.size.width, box.size.height)
    files.rewrite_text(
        file, files.json_text(dict(zip(_KEYS, values, strict=True)), indent=2) + "\n"
    )
    return file


def remove_cut(image: Path) -> bool:
    """Remove a manual crop, so that the whole image is used again; False if there was none.

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
    """Return the bucket, resize and crop of a part of an image; `rules` has defaults."""
    record = ImageRecord(image, box.size, FileStamp(0, 0), cut=Cut(whole, box))
    return plan_images([record], Size(resolution, resolution), rules or BucketRules()).images[0]


def _require_own(file: Path) -> None:
    fault = why_not_written(file, [file.parent])
    if fault:
        raise DatasetError(f"The crop of {file.parent} is not written: {fault}.")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31
