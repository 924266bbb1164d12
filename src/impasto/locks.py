"""Locks of folders that hold between processes, also of several machines on a network disk.

Each is a file beside what it locks (`lock_file.py`).

A folder of an object store is locked for the processes of this machine alone, in the folder of its
copies: what is in the store never changes, so other machines need no lock to read and to add.

`FolderLock` is for one process at a time, `SharedLock` for any number that use a folder together.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from impasto import storage_errors, temporary_names
from impasto.lock_file import (
    STALE_S,
    LockFile,
    LockHolder,
    create_lock,
    read_lock,
    remove_dead,
)
from impasto.remote_paths import machine_folder

LOCK_NAME, TIDY_NAME = ".lock", ".tidy.lock"
PRESENCE_PATTERN = ".in-use.*.lock"
_LOOK_AGAIN_S = 0.1
_NAMED_AFTER_S = 2.0
_ATTEMPTS = 20


class FolderLock:
    """A folder for this process alone, while it is entered as a context.

    Args:
        folder: The folder, which exists.
        what: What the process is doing, for others to read.
        on_busy: Is told who holds the lock. It raises, and the lock is not taken; or returns, and
            the lock is tried again a moment later.
        name: Of the lock file; a folder may have several locks.
    """

    def __init__(
        self, folder: Path, what: str, on_busy: Callable[[LockHolder], None], name: str = LOCK_NAME
    ) -> None:
        self._on_busy = on_busy
        self._own = LockFile(machine_folder(folder) / name, what)

    @property
    def is_lost(self) -> bool:
        """Whether another process has taken the lock: this one was asleep for too long."""
        return self._own.is_lost

    def __enter__(self) -> FolderLock:
        while (holder := self._taken_by()) is not None:
            self._on_busy(holder)
            time.sleep(_LOOK_AGAIN_S)
        self._own.begin()
        return self

    def __exit__(self, *_: object) -> None:
        self._own.end()

    def _taken_by(self) -> LockHolder | None:
        """Take the lock, past dead holders; returns the living one that has it instead."""
        with storage_errors.reported(self._own.file):
            for _ in range(_ATTEMPTS):
                partial = self._own.written()
                try:
                    if create_lock(partial, self._own.file):
                        return None
                    holder = read_lock(self._own.file, now=partial.stat().st_mtime)
                    if holder is not None and holder.is_alive:
                        return holder
                    if holder is not None:
                        remove_dead(self._own.file, holder, partial)
                finally:
                    partial.unlink(missing_ok=True)
            raise OSError("its lock changes hands all the time")


class LockWaiter:
    """Waits for the holder of a lock, and notes it once if that takes more than two seconds.

    Args:
        note: Is given the words.
        doing: What has to wait: "writing latents to <folder>".
    """

    def __init__(self, note: Callable[[str], None], doing: str) -> None:
        self._note, self._doing = note, doing
        self._since: float | None = None

    def __call__(self, holder: LockHolder) -> None:
        """Be told who holds the lock, at each look."""
        if self._since is None:
            self._since = time.monotonic()
        elif time.monotonic() - self._since > _NAMED_AFTER_S:
            self._note(f"Waiting for {holder.description} before {self._doing} ...")
            self._since = float("inf")


class SharedLock:
    """Holds a folder together with other processes, while entered as a context.

    It waits for a process that is tidying the folder up (`exclusive_lock`). Where the folder cannot
    be written there is no lock: nobody can remove anything there either.

    Args:
        folder: The folder; created if it can be.
        what: What the process is doing, for others to read.
        on_busy: Is told who is tidying up, at each look.
    """

    def __init__(self, folder: Path, what: str, on_busy: Callable[[LockHolder], None]) -> None:
        self._folder, self._on_busy = machine_folder(folder), on_busy
        own = temporary_names.partial_name(folder / "x").name.removeprefix(".x.")
        name = own.removesuffix(temporary_names.PARTIAL_SUFFIX)
        self._own = LockFile(self._folder / f".in-use.{name}.lock", what)

    @property
    def file(self) -> Path:
        """The file that says that this process uses the folder; missing where it cannot."""
        return self._own.file

    def __enter__(self) -> SharedLock:
        with contextlib.suppress(OSError):
            self._own.file.parent.mkdir(parents=True, exist_ok=True)
            self._own.written().replace(self._own.file)
            self._own.begin()
        try:
            while (holder := lock_holder(self._folder, TIDY_NAME)) is not None:
                self._on_busy(holder)
                time.sleep(_LOOK_AGAIN_S)
        except BaseException:  # whatever ends the waiting, Ctrl-C included, ends the presence
            self._own.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._own.end()


@contextlib.contextmanager
def exclusive_lock(
    folder: Path, what: str, on_busy: Callable[[LockHolder], None]
) -> Iterator[None]:
    """Have a folder without any process that uses it, to remove things from it.

    Args:
        folder: The folder, which exists.
        what: What the process is doing, for others to read.
        on_busy: Is told of a process that uses the folder; it has to raise.
    """
    folder = machine_folder(folder)
    with FolderLock(folder, what, on_busy, TIDY_NAME):
        for holder in shared_lock_holders(folder):
            on_busy(holder)
        yield


def lock_holder(folder: Path, name: str = LOCK_NAME) -> LockHolder | None:
    """The living process that has a lock of a folder, if there is one."""
    holder = read_lock(folder / name, now=time.time())
    if holder is not None and (holder.owner is None or not holder.owner.is_here):
        holder = read_lock(
            folder / name, now=temporary_names.disk_time(folder)
        )  # its age is what tells
    return holder if holder is not None and holder.is_alive else None


def shared_lock_holders(folder: Path) -> list[LockHolder]:
    """The living processes that use a folder; what dead ones left of themselves is removed."""
    return list(shared_locks(folder).values())


def shared_locks(folder: Path) -> dict[Path, LockHolder]:
    """As `shared_lock_holders`, by the files that say so: a process may have several."""
    living, now = {}, temporary_names.disk_time(folder)
    for file in sorted(folder.glob(PRESENCE_PATTERN)):
        holder = read_lock(file, now=now)
        if holder is None:
            continue
        if holder.is_alive:
            living[file] = holder
        elif holder.owner is not None or holder.age_s >= STALE_S:
            with contextlib.suppress(OSError):
                file.unlink()
    return living


def is_of_locks(path: Path) -> bool:
    """Whether a file is a lock, or what a lock is made from."""
    return path.name.startswith(".") and path.name.endswith(".lock")
