"""Copies of objects on this machine: as many bytes as its disk may give, the least used go first.

The processes of a machine share them. A copy appears whole by one rename, and is never changed; a
process that finds one gone fetches it again. Only what can be large counts and goes: shards.
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
"""The ending of the copies that count, and go when there are too many."""


def limit_bytes() -> int:
    """How many bytes copies may take.

    Raises:
        ConfigError: The environment gives something that is no number.
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
            f"{LIMIT_VARIABLE} is {given!r}; expected how many GiB the copies of objects of a "
            f"store may take on this machine, as in 50."
        ) from error
    return int(limit * 2**30)


class SpareRoom:
    """The room for copies on this machine, for one process.

    Copies that this process has used are never removed to make room for more of its own: where not
    all fit, a part stays, instead of each making way for the next.
    """

    def __init__(self) -> None:
        self._since = time.time()
        self._lock = threading.Lock()
        self._promised: list[tuple[Path, int]] = []

    def use(self, copy: Path) -> bool:
        """Note that a copy is used; False where it is gone."""
        now = time.time_ns()  # file systems have a clock of their own, which may be behind
        try:
            os.utime(copy, ns=(now, now))
        except OSError:
            return False
        return True

    @contextlib.contextmanager
    def made(self, copy: Path, size: int, *, also_used: bool = False) -> Iterator[bool]:
        """Make room for a copy, which is written meanwhile; False where there is none.

        Args:
            copy: Its place.
            size: Its bytes.
            also_used: Whether copies may go that this process has used.
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
        written = {path for path, _ in self._promised}  # it may be there already: counted once
        copies = [copy for copy in _copies() if copy[2] not in written]
        taken = sum(own for _, own, _ in copies) + sum(own for _, own in self._promised)
        for used, own, path in copies:
            if taken + size <= limit or (used >= self._since and not also_used):
                break
            with contextlib.suppress(OSError):  # Windows removes none that is mapped
                path.unlink()
                taken -= own
        return taken + size <= limit


def fetch_to(location: Path, copy: Path, size: int) -> None:
    """Copy an object to a file of this machine, which appears whole.

    Raises:
        OSError: It is missing, or came cut short.
        StorageError: The disk is full, or the store cannot be used.
    """
    _fetch(location, copy, lambda partial: objects.download(location, partial, size))


def fetch_newest(location: Path, copy: Path, listed: Stored) -> Stored:
    """Copy an object that may be replaced meanwhile, as it was at one moment; it appears whole.

    Args:
        location: The object.
        copy: Where to.
        listed: What a listing said of it.

    Returns:
        What the store says of what came.

    Raises:
        OSError: It is missing, came cut short, or was replaced again and again.
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
"""How often an object is fetched that is replaced meanwhile."""


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
                f"{error.strerror or error}. {COPIES_VARIABLE} names another folder for copies, "
                f"and {LIMIT_VARIABLE} how many GiB they may take."
            ) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _put(partial: Path, copy: Path) -> None:
    """Give a copy its name; Windows replaces none that another process has mapped already."""
    try:
        partial.replace(copy)
    except PermissionError:
        if not (copy.is_file() and copy.stat().st_size == partial.stat().st_size):
            files.rename(partial, copy)


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A new folder in another, which is removed in the end, or by `remove_leftovers` after a kill.

    Raises:
        StorageError: It cannot be made.
    """
    own = partial_name(folder / "scratch")
    with reported(folder):
        own.mkdir(parents=True)
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _copies() -> list[tuple[float, int, Path]]:
    """(last use, bytes, path) of the copies that count, the least used first."""
    found = []
    for path in copies_folder().glob(f"objects/**/*{COUNTED}"):
        if path.name.startswith("."):  # it is just being written
            continue
        with contextlib.suppress(OSError):  # another process removes them too
            status = path.stat()
            found.append((status.st_mtime, status.st_size, path))
    return sorted(found)
