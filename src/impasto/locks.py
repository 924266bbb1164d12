"""Locks of folders between processes, including those of several machines on a network disk.

Each lock is a file in the folder that it locks (`lock_file.py`).

A folder of an object store is locked only for the processes of this machine, in the folder of its
copies: objects in the store never change, so other machines need no lock to read and add objects.

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
    """An exclusive lock of a folder for this process, held while entered as a context.

    Args:
        folder: The folder, which exists.
        what: A description of the process's work, shown to other processes.
        on_busy: Called with the holder of the lock. If it raises, the lock is not taken; if it
            returns, the lock is tried again a moment later.
        name: The name of the lock file; a folder may have several locks.
    """

    def __init__(
        self, folder: Path, what: str, on_busy: Callable[[LockHolder], None], name: str = LOCK_NAME
    ) -> None:
        self._on_busy = on_busy
        self._own = LockFile(machine_folder(folder) / name, what)

    @property
    def is_lost(self) -> bool:
        """Whether another process took the lock because this one was suspended for too long."""
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
        """Take the lock, removing dead ones; return None, or the living process that holds it."""
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
            raise OSError("other processes took and released its lock each time")


class LockWaiter:
    """Waits for the holder of a lock, and notes it once if that takes more than two seconds.

    Args:
        note: Called with the message.
        doing: The waiting work, such as "writing latents to <folder>".
    """

    def __init__(self, note: Callable[[str], None], doing: str) -> None:
        self._note, self._doing = note, doing
        self._since: float | None = None

    def __call__(self, holder: LockHolder) -> None:
        """Note the holder of the lock; called at each attempt."""
        if self._since is None:
            self._since = time.monotonic()
        elif time.monotonic() - self._since > _NAMED_AFTER_S:
            self._note(f"Waiting for {holder.description} before {self._doing} ...")
            self._since = float("inf")


class SharedLock:
    """A shared lock of a folder, held together with other processes while entered as a context.

    It waits for a process that holds the `exclusive_lock`. If the folder cannot be written, there
    is no lock: no process can remove anything there either.

    Args:
        folder: The folder; created if possible.
        what: A description of the process's work, shown to other processes.
        on_busy: Called with the holder of the exclusive lock, at each attempt.
    """

    def __init__(self, folder: Path, what: str, on_busy: Callable[[LockHolder], None]) -> None:
        self._folder, self._on_busy = machine_folder(folder), on_busy
        own = temporary_names.partial_name(folder / "x").name.removeprefix(".x.")
        name = own.removesuffix(temporary_names.PARTIAL_SUFFIX)
        self._own = LockFile(self._folder / f".in-use.{name}.lock", what)

    @property
    def file(self) -> Path:
        """The lock file by which this process shows that it uses the folder; it may not exist."""
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
        except BaseException:  # release the lock whatever ends the waiting, Ctrl-C included
            self._own.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._own.end()


@contextlib.contextmanager
def exclusive_lock(
    folder: Path, what: str, on_busy: Callable[[LockHolder], None]
) -> Iterator[None]:
    """Lock a folder against all other processes, shared locks included, to remove files from it.

    Args:
        folder: The folder, which exists.
        what: A description of the process's work, shown to other processes.
        on_busy: Called with a process that uses the folder; it must raise.
    """
    folder = machine_folder(folder)
    with FolderLock(folder, what, on_busy, TIDY_NAME):
        for holder in shared_lock_holders(folder):
            on_busy(holder)
        yield


def lock_holder(folder: Path, name: str = LOCK_NAME) -> LockHolder | None:
    """Return the living process that holds a lock of a folder, or None."""
    holder = read_lock(folder / name, now=time.time())
    if holder is not None and (holder.owner is None or not holder.owner.is_here):
        holder = read_lock(
            folder / name, now=temporary_names.disk_time(folder)
        )  # only its age shows whether it is alive
    return holder if holder is not None and holder.is_alive else None


def shared_lock_holders(folder: Path) -> list[LockHolder]:
    """Return the running processes that use a folder; lock files of dead processes are removed."""
    return list(shared_locks(folder).values())


def shared_locks(folder: Path) -> dict[Path, LockHolder]:
    """Return lock file -> running process that uses a folder; a process may have several files."""
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
    """Return whether a file is a lock or the temporary file of one, by its name."""
    return path.name.startswith(".") and path.name.endswith(".lock")
