"""Decodes any image file to upright sRGB pixels.

EXIF rotation, ICC profiles, transparency, 16 and 32 bits, CMYK, palettes and animation are handled
here and nowhere else. `data/folders/formats.py` lists the file extensions. `PREPROCESSING_VERSION`
is part of each cached latent's key: raise it when a change here or in the resize changes pixels.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps

from impasto.data.folders.formats import EXTENSIONS as EXTENSIONS
from impasto.data.pixels.opening import UnreadableImageError as UnreadableImageError
from impasto.data.pixels.opening import failure_of as failure_of
from impasto.data.pixels.opening import opened
from impasto.data.records import Size

PREPROCESSING_VERSION = 3
_EXIF_ORIENTATION = 0x0112
_TURNING = frozenset(range(2, 9))
_TRANSPOSING = frozenset({5, 6, 7, 8})
_MAY_TURN = frozenset({"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"})
_UPRIGHT_SIZES = frozenset({"TIFF"})  # Pillow reports their size, and loads them, already rotated
_REDUCING_GAP = 1.75  # Pillow's name for it, in Image.thumbnail
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
_FLOAT_SLACK = 1.05  # resampling rings a little beyond white
_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def read_header(path: Path, beginning: bytes | None = None) -> tuple[Size, bool]:
    """Return the upright size, and whether EXIF rotates or mirrors the stored pixels.

    No pixels are decoded.

    Args:
        path: The file.
        beginning: Its first `objects.HEADER_BYTES`, if already read from an object store.

    Raises:
        UnreadableImageError: Not an image, damaged, or larger than `opening.MAX_PIXELS`.
    """
    with opened(path, beginning=beginning) as image:
        width, height = image.size
        orientation = _orientation(image)
        turns = orientation in _TRANSPOSING and image.format not in _UPRIGHT_SIZES
    size = Size(height, width) if turns else Size(width, height)
    return size, orientation in _TURNING


def read_format(path: Path) -> tuple[str, str, int]:
    """Return Pillow's names of a file's format and pixel mode, and its number of frames.

    Raises:
        UnreadableImageError: As for `read_header`.
    """
    with opened(path) as image:
        return image.format or "", image.mode, int(getattr(image, "n_frames", 1))


def read_rgb(path: Path, *, at_least: Size | None = None) -> Image.Image:
    """Decode an image to upright 8-bit sRGB, with transparency over white.

    Args:
        path: The file.
        at_least: The size needed. If it is far smaller than a JPEG, that is decoded at a half, a
            quarter or an eighth of its size (by libjpeg, in the frequency domain), still at least
            1.75 times `at_least`: then the difference after resizing is like that between Lanczos
            and bicubic.

    Raises:
        UnreadableImageError: Not an image, truncated, damaged, or larger than `opening.MAX_PIXELS`.
    """
    return read_image(path, at_least=at_least)[0]


def read_image(
    path: Path, *, at_least: Size | None = None, with_alpha: bool = False
) -> tuple[Image.Image, Image.Image | None]:
    """Decode an image as `read_rgb` does, and also its opacity.

    Returns:
        The image, and its opacity as an 8-bit image; None if it has none or `with_alpha` is False.

    Raises:
        UnreadableImageError: As for `read_rgb`.
    """
    with opened(path, whole=True) as image:
        image.seek(0)
        if at_least is not None and image.format == "JPEG":
            turned = _orientation(image) in _TRANSPOSING
            wanted = at_least.hw if turned else at_least.wh
            image.draft(None, (int(_REDUCING_GAP * wanted[0]), int(_REDUCING_GAP * wanted[1])))
        image.load()
        profile = image.info.get("icc_profile")
        is_turned = image.format not in _UPRIGHT_SIZES and _exif_says(image) in _TURNING
        upright = ImageOps.exif_transpose(image) if is_turned else image
        converted = _to_srgb(_to_eight_bits(upright), profile)
        alpha = (
            converted.convert("RGBA").getchannel("A")
            if with_alpha and _is_clear(converted)
            else None
        )
        return _flatten(converted), alpha


def read_mask(path: Path) -> Image.Image:
    """Decode an image to upright 8-bit grey: white is 255, and transparent pixels are 0.

    Transparency is laid over black, so a mask painted in white on a transparent ground works.

    Raises:
        UnreadableImageError: As for `read_rgb`.
    """
    drawn, opacity = read_image(path, with_alpha=True)
    if opacity is None:
        return drawn.convert("L")
    over_white = np.asarray(drawn.convert("L"), np.int32)
    over_black = over_white - (255 - np.asarray(opacity, np.int32))
    return Image.fromarray(np.clip(over_black, 0, 255).astype(np.uint8))


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8, as far as it can be read from the header.

    Pillow would decode a whole PNG to search for EXIF data after the pixels, where hardly any
    program puts it; `rendering.render` notices such a file.
    """
    if image.format == "PNG" and _MAY_TURN.isdisjoint(image.info):
        return 1
    return _exif_says(image)


def _exif_says(image: Image.Image) -> int:
    """Return the EXIF orientation; 1 if there is none, it is not a number, or EXIF is broken."""
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:
        return 1  # as image viewers do: the pixels are sound
    return int(value) if isinstance(value, (int, float)) and 1 <= value <= 8 else 1


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale grey of 16 bits, 32 bits or floating point to 8 bits; convert() would clip it.

    Raises:
        UnreadableImageError: A floating-point image whose white value cannot be determined.
    """
    if image.mode in _SIXTEEN_BIT:
        scale = 255.0 / 65535.0
        values = np.asarray(image, dtype=np.float64)
    elif image.mode == "I":
        values = np.asarray(image, dtype=np.int32).astype(np.float64)
        if values.min(initial=0.0) < 0:  # Pillow reads unsigned values as signed ones
            values = np.where(values < 0, values + 2.0**32, values)
        scale = _scale_of(values, (255.0, 65535.0, 2.0**32 - 1))
    elif image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        scale = _float_scale(values)
    else:
        return image
    return Image.fromarray(np.clip(values * scale + 0.5, 0, 255).astype(np.uint8))


def _scale_of(values: np.ndarray, whites: tuple[float, ...]) -> float:
    """Return the factor to [0, 255]; white is the least of `whites` that no value exceeds."""
    most = values.max(initial=0.0)
    return 255.0 / next(white for white in whites if most <= white)


def _float_scale(values: np.ndarray) -> float:
    """Return the factor to [0, 255] of floating-point values, whose white is 1, 255 or 65535.

    No file says which of these is white, so the range of the values decides.

    Raises:
        UnreadableImageError: There are NaN or infinite values, or a range that fits none, as of
            HDR.
    """
    if not np.isfinite(values).all():
        raise UnreadableImageError("floating-point values with NaN or infinity")
    least, most = float(values.min(initial=0.0)), float(values.max(initial=0.0))
    if least >= 1 - _FLOAT_SLACK and most <= _FLOAT_SLACK:
        return 255.0
    if least >= 0 and 16 <= most <= 65535:
        return _scale_of(values, (255.0, 65535.0))
    raise UnreadableImageError(
        f"floating-point values from {least:.4g} to {most:.4g}, where black is 0 and white 1, 255 "
        f"or 65535; save it with 8 or 16 bits"
    )


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert to sRGB by the embedded ICC profile; a profile that cannot be used is ignored."""
    if not profile or image.mode not in {"RGB", "RGBA", "CMYK", "L"}:
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target_mode = "RGBA" if image.mode == "RGBA" else "RGB"
        converted = ImageCms.profileToProfile(image, source, _SRGB, outputMode=target_mode)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image
    return image if converted is None else converted


def _is_clear(image: Image.Image) -> bool:
    """Return whether an image has transparency in any form."""
    return image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info


def _flatten(image: Image.Image) -> Image.Image:
    if not _is_clear(image):
        return image if image.mode == "RGB" else image.convert("RGB")
    layer = image.convert("RGBA")
    ground = Image.new("RGBA", layer.size, (255, 255, 255, 255))
    return Image.alpha_composite(ground, layer).convert("RGB")
