"""Positions of tensors' bytes in files, and reading them into given memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path

from impasto.checkpoints.untrusted import untrusted
from impasto.errors import ModelError

_MOST_BUFFERS = 512
"""Buffers that one system call fills; Linux and macOS allow 1024 (IOV_MAX)."""


@dataclass(frozen=True)
class StoredBytes:
    """Contiguous bytes in a file.

    Attributes:
        path: The file.
        begin: Position of the first byte.
        check: Raises a ModelError if the file has changed since it was opened.
    """

    path: Path
    begin: int
    check: Callable[[], None]

    def shifted(self, count: int) -> StoredBytes:
        """Return the bytes that start `count` bytes later."""
        return replace(self, begin=self.begin + count)

    def read_into(self, *buffers: memoryview) -> None:
        """Fill buffers, one after another, from this position on.

        The GIL is released meanwhile and taken once per system call: a thread that reads while
        others run Python waits up to 5 ms for each.

        Raises:
            ModelError: The file was changed, cannot be read, or has become shorter.
        """
        with untrusted(self.path):
            self.check()
            try:
                with self.path.open("rb", buffering=0) as file:
                    done = _fill(file, self.begin, buffers)
            except OSError as error:
                reason = error.strerror or error
                raise ModelError(f"{self.path} cannot be read: {reason}.") from error
            if done < sum(map(len, buffers)):
                raise ModelError(
                    f"{self.path} became shorter while it was being read. Nothing was written."
                )
            self.check()  # it may have been replaced while it was read


def _fill(file: FileIO, begin: int, buffers: Sequence[memoryview]) -> int:
    """Fill buffers from a position on, and return the number of bytes read."""
    done = 0
    for group in _groups(buffers):
        wanted, found = sum(map(len, group)), 0
        while found < wanted:
            count = _read_some(file, begin + done, _without_first(group, found))
            if not count:
                return done
            found, done = found + count, done + count
    return done


def _groups(buffers: Sequence[memoryview]) -> Iterator[Sequence[memoryview]]:
    for first in range(0, len(buffers), _MOST_BUFFERS):
        yield buffers[first : first + _MOST_BUFFERS]


def _without_first(buffers: Sequence[memoryview], count: int) -> list[memoryview]:
    """Return the unfilled rest of buffers of which `count` bytes are filled."""
    left = []
    for buffer in buffers:
        if count < len(buffer):
            left.append(buffer[count:])
        count = max(count - len(buffer), 0)
    return left


def _read_some(file: FileIO, position: int, buffers: Sequence[memoryview]) -> int:
    """Make one system call, which may fill less; on Windows one buffer at a time."""
    if len(buffers) > 1 and hasattr(os, "preadv"):
        return os.preadv(file.fileno(), buffers, position)
    file.seek(position)
    return file.readinto(buffers[0]) or 0


def unchanged(path: Path) -> Callable[[], None]:
    """Return a function that raises a ModelError if the file has changed since this call.

    Raises:
        OSError: The file does not exist.
    """

    def stamp() -> tuple[int, int, int]:
        facts = os.stat(path)  # noqa: PTH116 - called for each tensor
        return facts.st_size, facts.st_mtime_ns, facts.st_ino

    first = stamp()

    def check() -> None:
        try:
            now = stamp()
        except OSError:
            now = None
        if now != first:
            raise ModelError(
                f"{path} was changed, replaced or removed while it was being read. Nothing was "
                f"written. Run the same command again when the file is complete."
            )

    return check
