"""Locks of folders that hold between processes, also of several machines on a network disk.

A lock is a small JSON file with the process that holds it; it is there or not, so nothing depends
on `flock`, which network disks pretend to have. Two signs tell a lock of a dead process: on the
same machine the process is gone (number and start, see `owners.py`); from anywhere else the file
was not touched for two minutes, which its holder does every quarter of a minute. Ages are measured
by the disk's own clock.

A folder of an object store is locked for the processes of this machine alone, in the folder of its
copies: what is in the store never changes, so other machines need no lock to read and to add.

`FolderLock` is for one process at a time, `SharedLock` for any number that use a folder together.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from impasto import storage_errors, temporary_names
from impasto.owners import ProcessIdentity, current_process, parse_process_token
from impasto.parsing import parse_json
from impasto.remote_paths import machine_folder

LOCK_NAME, TIDY_NAME = ".lock", ".tidy.lock"
PRESENCE_PATTERN = ".in-use.*.lock"
HEARTBEAT_S = 15.0
STALE_S = 120.0
_BEING_WRITTEN_S = 10.0  # a lock file that cannot be read may be read so much later
_LOOK_AGAIN_S = 0.1
_NAMED_AFTER_S = 2.0
_ATTEMPTS = 20


@dataclass(frozen=True)
class LockHolder:
    """Who holds a lock, as its file says.

    Attributes:
        text: The file as it is.
        owner: The process; None where the file is damaged.
        host: The name of its machine.
        since: When it took the lock, for people.
        what: What it is doing.
        age_s: Seconds since it gave a sign of life.
    """

    text: str
    owner: ProcessIdentity | None
    host: str
    since: str
    what: str
    age_s: float

    @property
    def is_alive(self) -> bool:
        """Whether the holder still runs, as far as that can be told."""
        if self.owner is None:
            return self.age_s < _BEING_WRITTEN_S
        running = self.owner.is_running()
        return self.age_s < STALE_S if running is None else running

    @property
    def words(self) -> str:
        """The process that holds the lock, for a message."""
        if self.owner is None:
            return "a process that is just starting"
        who = f"process {self.owner.pid} on {self.host}, since {self.since} ({self.what})"
        if not self.owner.is_here:
            free_in = max(1, round(STALE_S - self.age_s))
            who += (
                f"; it was alive {max(0, round(self.age_s))} s ago, and counts as ended if it "
                f"gives no sign for {free_in} s more"
            )
        return who


class _LockFile:
    """A lock file of this process, kept fresh by a thread while it is there."""

    def __init__(self, file: Path, what: str) -> None:
        self.file = file
        self.is_lost = False
        self._text = json.dumps(
            {
                "owner": current_process().token,
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "since": time.strftime("%Y-%m-%d %H:%M:%S"),
                "what": what,
            },
            ensure_ascii=False,
        )
        self._ended = threading.Event()

    def written(self) -> Path:
        """The content under a temporary name beside the lock.

        Raises:
            OSError: It cannot be written.
        """
        partial = temporary_names.partial_name(self.file)
        try:
            partial.write_text(self._text, encoding="utf-8")
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise
        return partial

    def begin(self) -> None:
        """Give signs of life from now on."""
        threading.Thread(target=self._beat, name="lock", daemon=True).start()

    def end(self) -> None:
        """Give no more, and remove the file unless it is another process's by now."""
        self._ended.set()
        if self._is_own():
            with contextlib.suppress(OSError):
                self.file.unlink()

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            text = _text_if_read(self.file)
            if text is None:
                continue  # it cannot be read just now, which says nothing
            self.is_lost = text not in (self._text, "")
            if text != self._text:
                continue
            with contextlib.suppress(OSError):
                os.utime(self.file)

    def _is_own(self) -> bool:
        return _text_of(self.file) == self._text


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
        self._own = _LockFile(machine_folder(folder) / name, what)

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
                    if _create_lock(partial, self._own.file):
                        return None
                    holder = _read(self._own.file, now=partial.stat().st_mtime)
                    if holder is not None and holder.is_alive:
                        return holder
                    if holder is not None:
                        _remove_dead(self._own.file, holder, partial)
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
            self._note(f"Waiting with {self._doing} for {holder.words} ...")
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
        self._own = _LockFile(self._folder / f".in-use.{name}.lock", what)

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
    holder = _read(folder / name, now=time.time())
    if holder is not None and (holder.owner is None or not holder.owner.is_here):
        holder = _read(
            folder / name, now=temporary_names.disk_time(folder)
        )  # its age is what tells
    return holder if holder is not None and holder.is_alive else None


def shared_lock_holders(folder: Path) -> list[LockHolder]:
    """The living processes that use a folder; what dead ones left of themselves is removed."""
    living, now = [], temporary_names.disk_time(folder)
    for file in sorted(folder.glob(PRESENCE_PATTERN)):
        holder = _read(file, now=now)
        if holder is None:
            continue
        if holder.is_alive:
            living.append(holder)
        else:
            with contextlib.suppress(OSError):
                file.unlink()
    return living


def is_of_locks(path: Path) -> bool:
    """Whether a file is a lock, or what a lock is made from."""
    return path.name.startswith(".") and path.name.endswith(".lock")


def _create_lock(partial: Path, lock: Path) -> bool:
    """Give a file the lock's name; False where there is a lock already. All at once or not."""
    try:
        os.link(partial, lock)
    except FileExistsError:
        return False
    except (OSError, NotImplementedError):  # a disk without hard links, such as exFAT
        try:
            with lock.open("x", encoding="utf-8") as file:
                file.write(partial.read_text(encoding="utf-8"))
        except FileExistsError:
            return False
    return True


def _remove_dead(lock: Path, holder: LockHolder, partial: Path) -> None:
    """Take a dead process's lock away, unless another process was faster and has taken it.

    Only who has the lock for it looks and removes: of two who found the same dead lock, the slower
    would remove what a third has taken since.

    Args:
        lock: The dead process's.
        holder: What it said.
        partial: A file with what this process's own lock says.
    """
    breaking = lock.with_name(f"{lock.name.removesuffix('.lock')}.breaking.lock")
    if not _create_lock(partial, breaking):
        other = _read(breaking, now=partial.stat().st_mtime)
        if other is not None and not other.is_alive:
            with contextlib.suppress(OSError):
                breaking.unlink()
        return
    try:
        if _text_of(lock) == holder.text:
            lock.unlink()
    except OSError:
        return
    finally:
        with contextlib.suppress(OSError):
            breaking.unlink()


def _read(file: Path, *, now: float) -> LockHolder | None:
    """What a lock file says; None where there is none. `now` is of the disk's clock."""
    try:
        touched = file.stat().st_mtime
    except OSError:
        return None
    text = _text_of(file)
    try:
        said = parse_json(text)
        owner = parse_process_token(said["owner"])
        host, since, what = (str(said[name])[:100] for name in ("host", "since", "what"))
    except (ValueError, KeyError, TypeError):
        owner, host, since, what = None, "", "", ""
    return LockHolder(text, owner, host, since, what, max(0.0, now - touched))


def _text_of(file: Path) -> str:
    return _text_if_read(file) or ""


def _text_if_read(file: Path) -> str | None:
    """What a lock says; empty where there is none, None where it cannot be read just now."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    except OSError:
        return None
