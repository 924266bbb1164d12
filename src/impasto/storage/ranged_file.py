"""An object of a store as a seekable file of which only what is asked for is read."""

from __future__ import annotations

import io
import os
from pathlib import Path

from impasto.storage import objects

_AHEAD = 1 << 20
"""Bytes that are read where fewer are asked for: walking through a tar goes on behind them."""


class RangedFile(io.RawIOBase):
    """An object as a file, read only, with its last part in memory.

    Args:
        place: The object.
        size: How many bytes it has.
        ahead: How many bytes are read at least.
    """

    def __init__(self, place: Path, size: int, ahead: int = _AHEAD) -> None:
        super().__init__()
        self._place, self._size, self._ahead = place, size, ahead
        self._at = self._begin = 0
        self._part = b""

    def readable(self) -> bool:
        """A file to read from."""
        return True

    def seekable(self) -> bool:
        """A file to go about in."""
        return True

    def tell(self) -> int:
        """Where it is read next."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go somewhere; nothing is read."""
        before = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, before + offset)
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """Read some bytes, or all that follow.

        Raises:
            OSError: The object is missing, or came cut short.
            StorageError: The store cannot be used.
        """
        left = max(0, self._size - self._at)
        wanted = left if size is None or size < 0 else min(size, left)
        begin = self._at - self._begin
        if begin < 0 or begin + wanted > len(self._part):
            end = min(self._size, self._at + max(wanted, self._ahead))
            self._part = objects.read_ranges([(self._place, self._at, end)])[0] if wanted else b""
            self._begin, begin = self._at, 0
        part = self._part[begin : begin + wanted]
        self._at += len(part)
        return part

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read into memory that is there."""
        part = self.read(len(buffer))
        buffer[: len(part)] = part
        return len(part)
