"""From a file to upright sRGB pixels, whatever the file holds.

EXIF rotation, ICC profiles, transparency, 16 and 32 bits, CMYK, palettes and animation are handled
here and nowhere else. Which endings there are is `data/folders/formats.py`'s to say.
`PREPROCESSING_VERSION` is part of each cached latent's key: raise it when a change here or in the
resize changes pixels.
"""

from __future__ import annotations

import contextlib
import io
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

import numpy as np
from PIL import Image, ImageCms, ImageFile, ImageOps, UnidentifiedImageError, features

from impasto.data.engines.stages import Failure
from impasto.data.folders.formats import EXTENSIONS as EXTENSIONS
from impasto.data.folders.formats import HEIF, heif_advice, register_heif
from impasto.data.records import Size
from impasto.errors import ImpastoError
from impasto.member_paths import is_member, member_of
from impasto.remote_paths import is_remote
from impasto.storage import objects
from impasto.storage.object_file import open_object

PREPROCESSING_VERSION = 3
MAX_PIXELS = 178_956_970  # Pillow's own limit for a decompression bomb: 2 x 89,478,485
_EXIF_ORIENTATION = 0x0112
_TURNING = frozenset(range(2, 9))
_TRANSPOSING = frozenset({5, 6, 7, 8})
_UPRIGHT_SIZES = frozenset({"TIFF"})  # Pillow gives their size, and loads them, turned already
_REDUCING_GAP = 1.75  # Pillow's name for it, in Image.thumbnail
_DECODERS = {".avif": "avif", ".avifs": "avif", ".webp": "webp"}  # Pillow may be built without
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
_FLOAT_SLACK = 1.05  # resampling rings a little beyond white
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"})
_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


class UnreadableImageError(Exception):
    """An image cannot be used; the message is the reason shown to the user.

    Args:
        reason: The message.
        is_transient: Whether that says nothing of the file; see `Failure`.
    """

    def __init__(self, reason: str, *, is_transient: bool = False) -> None:
        super().__init__(reason)
        self.is_transient = is_transient


def failure_of(error: UnreadableImageError | OSError) -> Failure:
    """What could not be read, as the outcome of a stage."""
    if isinstance(error, UnreadableImageError):
        return Failure(str(error), error.is_transient)
    return Failure(f"cannot be read ({error.strerror or error})", is_transient=True)


def read_header(path: Path, beginning: bytes | None = None) -> tuple[Size, bool]:
    """The upright size, and whether EXIF turns or mirrors the stored pixels; none are decoded.

    Args:
        path: The file.
        beginning: Its first `objects.HEADER_BYTES`, where they have been read from a store.

    Raises:
        UnreadableImageError: Not an image, damaged, or larger than `MAX_PIXELS`.
    """
    with _opened(path, beginning=beginning) as image:
        width, height = image.size
        orientation = _orientation(image)
        turns = orientation in _TRANSPOSING and image.format not in _UPRIGHT_SIZES
    size = Size(height, width) if turns else Size(width, height)
    return size, orientation in _TURNING


def read_format(path: Path) -> tuple[str, str, int]:
    """Pillow's names of a file's format and kind of pixels, and how many images it holds.

    Raises:
        UnreadableImageError: As for `read_header`.
    """
    with _opened(path) as image:
        return image.format or "", image.mode, int(getattr(image, "n_frames", 1))


def read_rgb(path: Path, *, at_least: Size | None = None) -> Image.Image:
    """Decode an image to upright 8-bit sRGB; transparency is laid over white.

    Args:
        path: The file.
        at_least: Where this is far smaller than a JPEG, it is decoded at a half, a quarter or an
            eighth of its size (by libjpeg, in the frequency domain), still 1.75 times this at
            least: then the difference after resizing is like that from Lanczos to bicubic.

    Raises:
        UnreadableImageError: Not an image, truncated, damaged, or larger than `MAX_PIXELS`.
    """
    return read_image(path, at_least=at_least)[0]


def read_image(
    path: Path, *, at_least: Size | None = None, with_alpha: bool = False
) -> tuple[Image.Image, Image.Image | None]:
    """As `read_rgb`, with the opacity besides, an 8-bit image; None where it has none.

    Raises:
        UnreadableImageError: As for `read_rgb`.
    """
    with _opened(path, whole=True) as image:
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
    """Decode an image to upright 8-bit grey: white is 255.

    Raises:
        UnreadableImageError: As for `read_rgb`.
    """
    return read_rgb(path).convert("L")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8, as far as the header has it.

    Pillow would decode a whole PNG to look for EXIF data behind the pixels, where hardly any
    program puts it; `rendering.render` notices such a file.
    """
    in_header = "exif" in image.info or "Raw profile type exif" in image.info
    if image.format == "PNG" and not in_header:
        return 1
    return _exif_says(image)


def _exif_says(image: Image.Image) -> int:
    """The EXIF orientation; 1 where there is none, or something that is no number."""
    value = image.getexif().get(_EXIF_ORIENTATION, 1)
    return int(value) if isinstance(value, (int, float)) and 1 <= value <= 8 else 1


@contextlib.contextmanager
def _opened(
    path: Path, *, whole: bool = False, beginning: bytes | None = None
) -> Iterator[Image.Image]:
    """Open an image, and turn each way in which that fails into a reason in words.

    Args:
        path: The file.
        whole: Whether all of it will be read: an object of a store comes in one piece then.
        beginning: The first bytes of an object, where they are there already.
    """
    try:
        source = _source_of(path, whole=whole, beginning=beginning)
        if _may_be_heif(path, source) and not register_heif():
            raise UnreadableImageError(heif_advice(), is_transient=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(source) as image:
                if image.size[0] * image.size[1] > MAX_PIXELS:
                    raise UnreadableImageError(
                        f"{image.size[0]}x{image.size[1]} is over {MAX_PIXELS / 1e6:.0f} megapixels"
                    )
                yield image
    except (UnreadableImageError, ImpastoError):  # the second is of a whole object store
        raise
    except Exception as error:  # decoders raise any class on damaged files, as AVIF's RuntimeError
        raise _unreadable(error, path) from error


def _source_of(path: Path, *, whole: bool, beginning: bytes | None) -> Path | IO[bytes]:
    """What Pillow opens.

    Raises:
        UnreadableImageError: It is no regular file: opening a FIFO would wait for ever.
        StorageError: It is in an object store that cannot be used.
    """
    member = member_of(path)
    if member is not None:
        from impasto.data.pixels.member_files import (
            open_member,  # which says what is wrong in our words
        )

        return open_member(member, whole=whole, beginning=beginning)
    if is_remote(path):
        if whole:
            return io.BytesIO(objects.read(path))
        return cast("IO[bytes]", open_object(path, beginning))  # as far as Pillow uses one
    if not stat.S_ISREG(path.stat().st_mode):
        raise UnreadableImageError("not a regular file")
    return path


def _may_be_heif(path: Path, source: Path | IO[bytes]) -> bool:
    """Whether an image is HEIC or HEIF: by its ending, or in a table by its first bytes."""
    if path.suffix.lower() in HEIF:
        return True
    if not isinstance(source, io.BytesIO) or not is_member(path):
        return False
    head = source.getbuffer()[:12].tobytes()
    return head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS


def _unreadable(error: Exception, path: Path) -> UnreadableImageError:
    """Why an image cannot be opened or decoded."""
    if isinstance(error, Image.DecompressionBombError):
        return UnreadableImageError("over 179 megapixels")
    if isinstance(error, MemoryError) or "out of memory" in str(error):  # of Pillow's decoders
        return UnreadableImageError("not enough memory to decode it", is_transient=True)
    if isinstance(error, UnidentifiedImageError):
        decoder = _DECODERS.get(path.suffix.lower())
        is_missing = decoder is not None and not features.check(decoder)
        return UnreadableImageError(_unidentified_reason(path), is_transient=is_missing)
    if isinstance(error, OSError) and error.errno is not None:  # the system's, not Pillow's
        return UnreadableImageError(f"cannot be read ({error.strerror})", is_transient=True)
    return UnreadableImageError(f"damaged or truncated ({_one_line(error)})")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _unidentified_reason(path: Path) -> str:
    member = member_of(path)
    if member is not None:
        from impasto.data.pixels.member_files import read_member

        head = read_member(member, 256)
    elif is_remote(path):
        head = objects.read(path, 0, 256)
    else:
        with path.open("rb") as file:
            head = file.read(256)
    if not head:
        return "the file is empty"
    if not head.strip(b"\0"):
        return "not an image: zeros only, as after a copy that broke off or on a full disk"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "an HTML page saved under an image's name"
    return "not an image in a known format, or damaged"


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Bring grey of 16 bits, 32 bits and floating point to 8 bits by scale; convert() would clip.

    Raises:
        UnreadableImageError: Floating point whose white cannot be told.
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
    """What brings values to [0, 255], where white is the least of `whites` that holds them."""
    most = values.max(initial=0.0)
    return 255.0 / next(white for white in whites if most <= white)


def _float_scale(values: np.ndarray) -> float:
    """The scale of floating-point values: white is 1, 255 or 65535, and no file says which.

    Raises:
        UnreadableImageError: NaN or infinity, or a range that fits none of them, as of HDR.
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
    """Convert by the embedded ICC profile; a profile that cannot be used is passed over."""
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
    """Whether an image has opacity, in whatever form."""
    return image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info


def _flatten(image: Image.Image) -> Image.Image:
    if not _is_clear(image):
        return image if image.mode == "RGB" else image.convert("RGB")
    layer = image.convert("RGBA")
    ground = Image.new("RGBA", layer.size, (255, 255, 255, 255))
    return Image.alpha_composite(ground, layer).convert("RGB")


ImageFile.LOAD_TRUNCATED_IMAGES = False
