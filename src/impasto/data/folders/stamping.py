"""Reads size and modification time of an image file and of the files that belong to it."""

from __future__ import annotations

import os
import stat

from impasto.data.folders.found_image import FoundImage

NO_FILE = (0, 0)


def stat_image(path: str, caption_files: tuple[str, str] = ("", ""), crop: str = "") -> FoundImage:
    """Return an image file with the stamps of it and of its caption files, and its crop file.

    It has a fault instead if one of these files cannot be used.
    """
    try:
        status = os.stat(path)  # noqa: PTH116 - hot path
        if not stat.S_ISREG(status.st_mode):
            return FoundImage(path, [], fault=_kind_of(status.st_mode))
    except OSError as error:
        return FoundImage(path, [], fault=f"cannot be read ({error.strerror or error})")
    stamps = [status.st_size, status.st_mtime_ns]
    for file in caption_files:
        own = _stamp(file) if file else NO_FILE
        if own is None:
            name = os.path.basename(file)  # noqa: PTH119 - hot path
            return FoundImage(path, [], fault=f"its caption {name} is not a file, or a broken link")
        stamps += own
    if crop and _stamp(crop) is None:
        name = os.path.basename(crop)  # noqa: PTH119 - hot path
        return FoundImage(path, [], fault=f"its crop {name} is not a file, or a broken link")
    return FoundImage(path, stamps, caption_files, crop=crop)


def _stamp(path: str) -> tuple[int, int] | None:
    """Return size and modification time of a regular file; None otherwise, as for a broken link."""
    try:
        status = os.stat(path)  # noqa: PTH116 - hot path
    except OSError:
        return None
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


def _kind_of(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder with the name of an image"
    return f"not a regular file but a {'FIFO' if stat.S_ISFIFO(mode) else 'device or socket'}"
