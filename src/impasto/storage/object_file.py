"""An object of a store as a file: its beginning at once, and the rest when it is read."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from impasto.remote_paths import shown
from impasto.storage.objects import HEADER_BYTES, read


def open_object(location: Path, beginning: bytes | None = None) -> ObjectFile:
    """An object as a file that is read where it is read, in few requests.

    Raises:
        OSError: It is missing, or came cut short.
        StorageError: The store cannot be used.
    """
    return ObjectFile(location, read(location, 0, HEADER_BYTES) if beginning is None else beginning)


class ObjectFile:
    """A seekable file, read only: the beginning is there, and the rest comes when it is read.

    Args:
        location: The object.
        beginning: Its first `HEADER_BYTES`, or all of it where it is shorter.
        read_all: Reads all of it, where it is a part of the object; None reads the object.
    """

    def __init__(
        self, location: Path, beginning: bytes, read_all: Callable[[], bytes] | None = None
    ) -> None:
        self._location, self._content, self._at = location, beginning, 0
        self._read_all = read_all or partial(read, location)
        self._is_whole = len(beginning) < HEADER_BYTES

    def read(self, size: int = -1) -> bytes:
        """Read some bytes, or all that follow."""
        end = None if size is None or size < 0 else self._at + size
        if end is None or end > len(self._content):
            self._complete()
        piece = self._content[self._at : end]
        self._at += len(piece)
        return piece

    def readline(self, size: int = -1) -> bytes:
        """Read to the end of a line, as Pillow does where it looks for formats made of lines."""
        end = self._content.find(b"\n", self._at)
        if end < 0:
            self._complete()
            end = self._content.find(b"\n", self._at)
        length = (end if end >= 0 else len(self._content) - 1) + 1 - self._at
        return self.read(max(0, length if size is None or size < 0 else min(length, size)))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go somewhere; the end is that of the whole object."""
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
        """The position that is read from next."""
        return self._at

    def close(self) -> None:
        """Let the content go."""
        self._content = b""

    def _complete(self) -> None:
        if not self._is_whole:
            self._content = self._read_all()
            self._is_whole = True
