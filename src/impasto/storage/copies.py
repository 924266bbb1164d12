"""Local copies of objects, limited in total size; the least recently used are removed first.

The processes of a machine share them. A copy appears whole by one rename, and is never changed; a
process that finds one missing fetches it again. Only files that can be large count and are removed:
shards.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from impasto import files
from impasto.errors import ConfigError, StorageError
from impasto.remote_paths import COPIES_VARIABLE, copies_folder, shown
from impasto.storage import objects
from impasto.storage.objects import Stored
from impasto.storage_errors import is_out_of_space, reported
from impasto.temporary_names import partial_name

LIMIT_VARIABLE = "IMPASTO_STORE_CACHE_GB"
DEFAULT_GB = 50.0
COUNTED = ".safetensors"
"""Extension of the copies that count towards the limit, and are removed above it."""


def limit_bytes() -> int:
    """Return how many bytes copies may take.

    Raises:
        ConfigError: The environment variable is not a valid number.
    """
    given = os.environ.get(LIMIT_VARIABLE)
    if not given:
        return int(DEFAULT_GB * 2**30)
    try:
        limit = float(given)
        if not 0 <= limit < 2**30:
            raise ValueError
    except ValueError as error:
        raise ConfigError(
            f"{LIMIT_VARIABLE} is {given!r}; expected the GiB that copies of a store's objects may "
            f"take on this machine, such as 50."
        ) from error
    return int(limit * 2**30)


class SpareRoom:
    """The disk space for copies on this machine, as used by one process.

    Copies that this process has used are never removed to make room for more of its own: if not all
    fit, some stay, instead of each being replaced by the next.
    """

    def __init__(self) -> None:
        self._since = time.time()
        self._lock = threading.Lock()
        self._promised: list[tuple[Path, int]] = []

    def use(self, copy: Path) -> bool:
        """Record that a copy is used; return False if it is missing."""
        now = time.time_ns()  # the file system's own clock may be behind
        try:
            os.utime(copy, ns=(now, now))
        except OSError:
            return False
        return True

    @contextlib.contextmanager
    def made(self, copy: Path, size: int, *, also_used: bool = False) -> Iterator[bool]:
        """Make room for a copy that is written in the block; yield False if there is no room.

        Args:
            copy: Path of the copy.
            size: Its size in bytes.
            also_used: Whether copies that this process has used may be removed.
        """
        promise = (copy, size)
        with self._lock:
            is_made = self._make(size, also_used=also_used)
            if is_made:
                self._promised.append(promise)
        try:
            yield is_made
        finally:
            if is_made:
                with self._lock:
                    self._promised.remove(promise)

    def _make(self, size: int, *, also_used: bool) -> bool:
        limit = limit_bytes()
        if size > limit:
            return False
        written = {path for path, _ in self._promised}  # may already exist: counted once
        copies = [copy for copy in _copies() if copy[2] not in written]
        taken = sum(own for _, own, _ in copies) + sum(own for _, own in self._promised)
        for used, own, path in copies:
            if taken + size <= limit or (used >= self._since and not also_used):
                break
            with contextlib.suppress(OSError):  # Windows does not remove mapped files
                path.unlink()
                taken -= own
        return taken + size <= limit


def fetch_to(location: Path, copy: Path, size: int) -> None:
    """Copy an object to a local file, which appears whole.

    Raises:
        OSError: It is missing, or was received incompletely.
        StorageError: The disk is full, or the store cannot be used.
    """
    _fetch(location, copy, lambda partial: objects.download(location, partial, size))


def fetch_newest(location: Path, copy: Path, listed: Stored) -> Stored:
    """Copy one consistent version of an object that may be replaced meanwhile; it appears whole.

    Args:
        location: The object.
        copy: Path of the local file.
        listed: The object as listed.

    Returns:
        The store's facts about the version that was received.

    Raises:
        OSError: It is missing, was received incompletely, or was replaced again and again.
        StorageError: The disk is full, or the store cannot be used.
    """
    found = [listed]
    _fetch(
        location, copy, lambda partial: found.append(_download_newest(location, partial, listed))
    )
    return found[-1]


def _download_newest(location: Path, partial: Path, stored: Stored) -> Stored:
    for _ in range(_TRIES):
        fault = None
        try:
            objects.download(location, partial, stored.size)
        except OSError as error:
            fault = error
        if fault is None and stored.size <= objects.COPIED_AT_ONCE:
            return stored
        now = objects.look_up(location)
        if now is None:
            raise fault or FileNotFoundError(
                errno.ENOENT, os.strerror(errno.ENOENT), shown(location)
            )
        if now == stored:
            if fault is not None:
                raise fault
            return stored
        stored = now
    raise OSError(errno.EAGAIN, "is being replaced again and again", shown(location))


_TRIES = 5
"""How often an object is fetched that is replaced during the download."""


def _fetch(location: Path, copy: Path, download: Callable[[Path], object]) -> None:
    partial = partial_name(copy)
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        download(partial)
        _put(partial, copy)
    except OSError as error:
        if is_out_of_space(error) or isinstance(error, PermissionError):
            raise StorageError(
                f"No copy of {shown(location)} could be written into {copies_folder()}: "
                f"{error.strerror or error}. Set {COPIES_VARIABLE} to another folder for copies, "
                f"or {LIMIT_VARIABLE} to the GiB that they may take."
            ) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _put(partial: Path, copy: Path) -> None:
    """Rename a finished copy; Windows does not replace one that another process has mapped."""
    try:
        partial.replace(copy)
    except PermissionError:
        if not (copy.is_file() and copy.stat().st_size == partial.stat().st_size):
            files.rename(partial, copy)


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """Yield a new folder inside another; it is removed afterwards.

    After a kill, `remove_leftovers` removes it.

    Raises:
        StorageError: It cannot be created.
    """
    own = partial_name(folder / "scratch")
    with reported(folder):
        own.mkdir(parents=True)
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _copies() -> list[tuple[float, int, Path]]:
    """Return (last use, bytes, path) of the copies that count, the least recently used first."""
    found = []
    for path in copies_folder().glob(f"objects/**/*{COUNTED}"):
        if path.name.startswith("."):  # it is being written
            continue
        with contextlib.suppress(OSError):  # another process removes them too
            status = path.stat()
            found.append((status.st_mtime, status.st_size, path))
    return sorted(found)
