"""An object of a store as a file: its first bytes are in memory, the rest is read when needed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from impasto.remote_paths import shown
from impasto.storage.objects import HEADER_BYTES, read


def open_object(location: Path, beginning: bytes | None = None) -> ObjectFile:
    """Open an object as a file that is read with few requests.

    Raises:
        OSError: It is missing, or was received incompletely.
        StorageError: The store cannot be used.
    """
    return ObjectFile(location, read(location, 0, HEADER_BYTES) if beginning is None else beginning)


class ObjectFile:
    """A seekable, read-only file with its first bytes in memory; the rest is read when needed.

    Args:
        location: The object.
        beginning: Its first `HEADER_BYTES`, or the whole of a shorter one.
        read_all: Reads the whole content, if it is a part of the object; None reads the object.
    """

    def __init__(
        self, location: Path, beginning: bytes, read_all: Callable[[], bytes] | None = None
    ) -> None:
        self._location, self._content, self._at = location, beginning, 0
        self._read_all = read_all or partial(read, location)
        self._is_whole = len(beginning) < HEADER_BYTES

    def read(self, size: int = -1) -> bytes:
        """Return `size` bytes, or all that follow."""
        end = None if size is None or size < 0 else self._at + size
        if end is None or end > len(self._content):
            self._complete()
        piece = self._content[self._at : end]
        self._at += len(piece)
        return piece

    def readline(self, size: int = -1) -> bytes:
        """Return the bytes to the end of a line; Pillow calls this to detect line-based formats."""
        end = self._content.find(b"\n", self._at)
        if end < 0:
            self._complete()
            end = self._content.find(b"\n", self._at)
        length = (end if end >= 0 else len(self._content) - 1) + 1 - self._at
        return self.read(max(0, length if size is None or size < 0 else min(length, size)))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the position and return it; the end is that of the whole object.

        Raises:
            OSError: The position is negative.
        """
        if whence == os.SEEK_END:
            self._complete()
            offset += len(self._content)
        elif whence == os.SEEK_CUR:
            offset += self._at
        if offset < 0:
            raise OSError(errno.EINVAL, "before the beginning of a file", shown(self._location))
        self._at = offset
        return offset

    def tell(self) -> int:
        """Return the position of the next read."""
        return self._at

    def close(self) -> None:
        """Release the downloaded content, to free its memory."""
        self._content = b""

    def _complete(self) -> None:
        if not self._is_whole:
            self._content = self._read_all()
            self._is_whole = True
