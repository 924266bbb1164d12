"""Varies an image each time it is shown: its crop and its colours.

Such images cannot be encoded ahead. All randomness follows from (seed, epoch, image, repeat).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from impasto.data.pixels.rendering import Rendered, render
from impasto.data.records import Box, Cut, PlannedImage, Size
from impasto.data.subsets import Augmentation
from impasto.randomness import derive_rng

_FACE = re.compile(r"_(\d+)_(\d+)_(\d+)_(\d+)$")
COLOR_CHANCE = 0.33
HUE_DEGREES = 16.0
GAMMA = 0.05


@dataclass(frozen=True)
class Face:
    """The place of a face, in pixels of the image: its centre, width and height."""

    x: int
    y: int
    size: Size


def face_in_name(path: Path) -> Face | None:
    """Return the face that a file name ending in `_cx_cy_w_h` describes; None without such a face.

    The form is that of kohya-ss/sd-scripts (`tools/detect_face_rotate.py`).
    """
    match = _FACE.search(path.stem)
    if match is None:
        return None
    x, y, width, height = map(int, match.groups())
    return Face(x, y, Size(width, height)) if width and height else None


def _seen(face: Face | None, cut: Cut | None) -> Face | None:
    """Return a face in pixels of the part of an image used; None if its centre is outside."""
    if face is None or cut is None:
        return face
    x, y = face.x - cut.box.left, face.y - cut.box.top
    is_inside = 0 <= x < cut.box.size.width and 0 <= y < cut.box.size.height
    return Face(x, y, face.size) if is_inside else None


def render_augmented(
    image: PlannedImage, rules: Augmentation, seed: int, *keys: int | str
) -> Rendered:
    """Render an image as it is shown this time, with random crop and colours.

    Args:
        image: The image as planned; the bucket is not varied.
        rules: Which variations are on.
        seed: The run's seed.
        keys: Which image, in which epoch, and which of its repeats.

    Raises:
        UnreadableImageError: The image or its mask cannot be read.
    """
    rng = derive_rng(seed, "augmentation", *keys)
    face = _seen(face_in_name(image.record.path), image.record.cut)
    if rules.face_crop_range is not None and face is not None:
        image = _around_face(image, face, rules, rng)
    elif rules.random_crop:
        image = _anywhere(image, rng)
    rendered = render(image)
    if not rules.color:
        return rendered
    return replace(rendered, pixels=_shift_colors(rendered.pixels, rng))


def _anywhere(image: PlannedImage, rng: np.random.Generator) -> PlannedImage:
    room_x = image.resized.width - image.bucket.width
    room_y = image.resized.height - image.bucket.height
    left, top = int(rng.integers(room_x + 1)), int(rng.integers(room_y + 1))
    return replace(image, crop=Box(left, top, image.bucket))


def _around_face(
    image: PlannedImage, face: Face, rules: Augmentation, rng: np.random.Generator
) -> PlannedImage:
    """Scale so that a face takes the requested fraction, never enlarging, and crop around it."""
    assert rules.face_crop_range is not None  # noqa: S101 - the caller has checked
    low_ratio, high_ratio = rules.face_crop_range
    size, bucket = image.record.size, image.bucket
    cover = max(bucket.width / size.width, bucket.height / size.height)
    longest = max(face.size.width, face.size.height)
    shorter = min(bucket.width, bucket.height)
    most = max(cover, 1.0)
    low = min(most, max(cover, shorter / (longest * high_ratio)))
    high = min(most, max(low, shorter / (longest * low_ratio)))
    scale = float(rng.uniform(low, high))
    resized = Size(
        max(bucket.width, round(size.width * scale)), max(bucket.height, round(size.height * scale))
    )
    reach = 0.5 if rules.random_crop else 0.0
    left = _start(face.x * scale, bucket.width, resized.width, reach, rng)
    top = _start(face.y * scale, bucket.height, resized.height, reach, rng)
    return replace(image, resized=resized, crop=Box(left, top, bucket))


def _start(centre: float, length: int, room: int, reach: float, rng: np.random.Generator) -> int:
    """Return where a crop starts that has `centre` at or near its middle and lies within `room`."""
    begin = centre - length / 2 + float(rng.triangular(-1, 0, 1)) * length * reach
    return int(min(max(round(begin), 0), room - length))


def _shift_colors(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change the colours of a third of the images shown: the hue of half of these, else the gamma.

    The strengths are sd-scripts' (`library/train_util.py`, AugHelper), whose gamma is applied to
    0..255 and so darkens an image by a quarter; here it is applied to 0..1.
    """
    chance, kind, amount = rng.random(), rng.random(), float(rng.uniform(-1, 1))
    if chance >= COLOR_CHANCE:
        return pixels
    if kind < 0.5:
        hue, saturation, value = Image.fromarray(pixels).convert("HSV").split()
        shift = round(amount * HUE_DEGREES / 360 * 256)
        turned = Image.fromarray(np.asarray(hue) + np.uint8(shift % 256))
        return np.asarray(Image.merge("HSV", (turned, saturation, value)).convert("RGB"))
    curve = 255 * (np.arange(256) / 255) ** (1 + GAMMA * amount)
    table: np.ndarray = (curve + 0.5).astype(np.uint8)
    return np.asarray(table[pixels])
