"""A seekable file that reads only the requested ranges: of a store's object, or of a tar."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from impasto.storage import objects

_AHEAD = 1 << 20
"""Minimum bytes per request: walking through a tar continues with the bytes behind them."""


def open_ranges(location: Path, size: int, ahead: int = _AHEAD) -> RangedFile:
    """Return an object of a store as a file, without reading anything yet.

    Args:
        location: The object.
        size: Its size in bytes.
        ahead: Minimum number of bytes per read.
    """
    return RangedFile(partial(_range_of_object, location), size, ahead)


def _range_of_object(location: Path, begin: int, end: int) -> bytes:
    return objects.read_ranges([(location, begin, end)])[0]


class RangedFile(io.RawIOBase):
    """A read-only file over bytes that a function reads by ranges; the last range stays in memory.

    Args:
        read_range: Reads the bytes from the first index up to, not including, the second. It may
            return fewer, as a raw file may, but at least one; otherwise it raises an error.
        size: Number of bytes.
        ahead: Minimum number of bytes per read.
        on_close: Called when the file is closed.
    """

    def __init__(
        self,
        read_range: Callable[[int, int], bytes],
        size: int,
        ahead: int = 0,
        on_close: Callable[[], object] | None = None,
    ) -> None:
        super().__init__()
        self._read_range, self._size, self._ahead = read_range, size, ahead
        self._on_close = on_close
        self._at = self._begin = 0
        self._piece = b""

    def readable(self) -> bool:
        """Return True: the file can be read."""
        return True

    def seekable(self) -> bool:
        """Return True: the position can be set."""
        return True

    def tell(self) -> int:
        """Return the position of the next read."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the position and return it; nothing is read."""
        before = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, before + offset)
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """Return `size` bytes, or all that follow.

        Raises:
            OSError: They are missing, or incomplete.
            StorageError: They are in an object store that cannot be used.
        """
        left = max(0, self._size - self._at)
        wanted = left if size is None or size < 0 else min(size, left)
        begin = self._at - self._begin
        if begin < 0 or begin + wanted > len(self._piece):
            end = min(self._size, self._at + max(wanted, self._ahead))
            self._piece = self._read_range(self._at, end) if wanted else b""
            self._begin, begin = self._at, 0
        piece = self._piece[begin : begin + wanted]
        self._at += len(piece)
        return piece

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read into the given memory, and return the number of bytes."""
        piece = self.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        """Close the file, and its source if `on_close` was given."""
        if self._on_close is not None:
            self._on_close()
        super().close()
