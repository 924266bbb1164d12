"""Opens image files with Pillow, and turns any error into a reason for the user."""

from __future__ import annotations

import contextlib
import io
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from PIL import Image, ImageFile, PngImagePlugin, UnidentifiedImageError, features

from impasto.data.engines.stages import Failure
from impasto.data.folders.formats import HEIF, heif_advice, register_heif
from impasto.errors import ImpastoError
from impasto.member_paths import member_of
from impasto.remote_paths import is_remote
from impasto.storage import objects
from impasto.storage.object_file import open_object

MAX_PIXELS = 178_956_970  # Pillow's own limit for a decompression bomb: 2 x 89,478,485
_DECODERS = {".avif": "avif", ".avifs": "avif", ".webp": "webp"}  # Pillow may be built without
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"})
_HEAD_BYTES = 256


class UnreadableImageError(Exception):
    """An image cannot be used; the message is the reason shown to the user.

    Args:
        reason: The message.
        is_transient: Whether the reason lies outside the file; see `Failure`.
    """

    def __init__(self, reason: str, *, is_transient: bool = False) -> None:
        super().__init__(reason)
        self.is_transient = is_transient


def failure_of(error: UnreadableImageError | OSError) -> Failure:
    """Return the outcome of a stage for an image that could not be read."""
    if isinstance(error, UnreadableImageError):
        return Failure(str(error), error.is_transient)
    return Failure(f"cannot be read ({error.strerror or error})", is_transient=True)


@contextlib.contextmanager
def opened(
    path: Path, *, whole: bool = False, beginning: bytes | None = None
) -> Iterator[Image.Image]:
    """Open an image, and turn every way in which that fails into an `UnreadableImageError`.

    Args:
        path: The file.
        whole: Whether all of it will be read: it is then read from an object store in one piece.
        beginning: The first bytes of an object, if already read.

    Raises:
        UnreadableImageError: The image cannot be opened, or is over `MAX_PIXELS`.
        StorageError: It is in an object store that cannot be used.
    """
    try:
        source = _source_of(path, whole=whole, beginning=beginning)
        if path.suffix.lower() in HEIF and not register_heif():
            raise UnreadableImageError(heif_advice(), is_transient=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with _open_image(source, path) as image:
                if image.size[0] * image.size[1] > MAX_PIXELS:
                    raise UnreadableImageError(
                        f"{image.size[0]}x{image.size[1]} is over {MAX_PIXELS / 1e6:.0f} megapixels"
                    )
                yield image
    except (UnreadableImageError, ImpastoError):  # the second concerns a whole object store
        raise
    except Exception as error:  # decoders raise any class on damaged files, as AVIF's RuntimeError
        raise _unreadable(error, path) from error


def _open_image(source: Path | IO[bytes], path: Path) -> Image.Image:
    """Open with Pillow, or with the HEIC decoder if the content is HEIC.

    Phones and web sites save HEIC files under other extensions too.

    Raises:
        UnreadableImageError: The file is HEIC, and the HEIC decoder is missing.
    """
    try:
        return Image.open(source)
    except UnidentifiedImageError:
        if not _is_heif(_head_of(path)):
            raise
        if not register_heif():
            raise UnreadableImageError(heif_advice(), is_transient=True) from None
        if not isinstance(source, Path):
            source.seek(0)
        return Image.open(source)


def _source_of(path: Path, *, whole: bool, beginning: bytes | None) -> Path | IO[bytes]:
    """Return the path or file object that Pillow opens.

    Raises:
        UnreadableImageError: The path is not a regular file: opening a FIFO would block for ever.
        StorageError: It is in an object store that cannot be used.
    """
    member = member_of(path)
    if member is not None:
        from impasto.data.pixels.member_files import (
            open_member,  # raises errors with our messages
        )

        return open_member(member, whole=whole, beginning=beginning)
    if is_remote(path):
        if whole:
            return io.BytesIO(objects.read(path))
        return cast("IO[bytes]", open_object(path, beginning))  # has all methods that Pillow uses
    if not stat.S_ISREG(path.stat().st_mode):
        raise UnreadableImageError("not a regular file")
    return path


def _is_heif(head: bytes) -> bool:
    """Return whether these first bytes are those of a HEIC file."""
    return head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS


def _unreadable(error: Exception, path: Path) -> UnreadableImageError:
    """Return the error that explains why an image cannot be opened or decoded."""
    if isinstance(error, Image.DecompressionBombError):
        return UnreadableImageError("over 179 megapixels")
    if isinstance(error, MemoryError) or "out of memory" in str(error):  # as in Pillow's decoders
        return UnreadableImageError("not enough memory to decode it", is_transient=True)
    if isinstance(error, UnidentifiedImageError):
        decoder = _DECODERS.get(path.suffix.lower())
        is_missing = decoder is not None and not features.check(decoder)
        return UnreadableImageError(_unidentified_reason(path), is_transient=is_missing)
    if isinstance(error, OSError) and error.errno is not None:  # from the system, not Pillow
        return UnreadableImageError(f"cannot be read ({error.strerror})", is_transient=True)
    return UnreadableImageError(f"damaged or truncated ({_one_line(error)})")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _head_of(path: Path) -> bytes:
    member = member_of(path)
    if member is not None:
        from impasto.data.pixels.member_files import read_member

        return read_member(member, _HEAD_BYTES)
    if is_remote(path):
        return objects.read(path, 0, _HEAD_BYTES)
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES)


def _unidentified_reason(path: Path) -> str:
    head = _head_of(path)
    if not head:
        return "the file is empty"
    if not head.strip(b"\0"):
        return "not an image: only zeros, as after an interrupted copy or on a full disk"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "an HTML page saved under an image's name"
    return "not an image in a known format, or damaged"


ImageFile.LOAD_TRUNCATED_IMAGES = False
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # workflow texts can be megabytes
