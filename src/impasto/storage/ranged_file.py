"""A seekable file of which only the ranges that are asked for are read: of a store, or of a tar."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from impasto.storage import objects

_AHEAD = 1 << 20
"""Bytes that are read where fewer are asked for: walking through a tar goes on behind them."""


def open_ranges(location: Path, size: int, ahead: int = _AHEAD) -> RangedFile:
    """An object of a store as a file; nothing is read yet.

    Args:
        location: The object.
        size: How many bytes it has.
        ahead: How many bytes are read at least.
    """
    return RangedFile(partial(_range_of_object, location), size, ahead)


def _range_of_object(location: Path, begin: int, end: int) -> bytes:
    return objects.read_ranges([(location, begin, end)])[0]


class RangedFile(io.RawIOBase):
    """Bytes that a function reads by ranges as a file, read only, with the last range in memory.

    Args:
        read_range: Reads the bytes from the first index to the one before the second. It may give
            fewer, as a raw file may, but at least one; else it raises an error.
        size: How many bytes there are.
        ahead: How many bytes are read at least.
        on_close: Called when this is closed.
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
        """A file to read from."""
        return True

    def seekable(self) -> bool:
        """A file to go about in."""
        return True

    def tell(self) -> int:
        """The position that is read from next."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a position; nothing is read."""
        before = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, before + offset)
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """Read some bytes, or all that follow.

        Raises:
            OSError: They are missing, or cut short.
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
        """Read into memory that is there."""
        piece = self.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        """Close what is read from too, if the file was made so."""
        if self._on_close is not None:
            self._on_close()
        super().close()
