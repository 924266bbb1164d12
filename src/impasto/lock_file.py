"""Lock files: created atomically, touched regularly, read, and removed if their holder has died.

A lock is a small JSON file that names the process that holds it. Only its existence counts, so
nothing depends on `flock`, which does not work on some network disks. A lock is dead if its process
has ended (by process id and start time, see `owners.py`) or, seen from another machine, if the file
was not touched for two minutes; its holder touches it every 15 seconds. Ages are measured by the
clock of the disk. `locks.py` builds locks from such files.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from impasto import temporary_names
from impasto.owners import ProcessIdentity, current_process, parse_process_token
from impasto.parsing import parse_json

_REMOVED_AFTER_S = (0.05, 0.1, 0.2, 0.4, 0.8)
HEARTBEAT_S = 15.0
STALE_S = 120.0
_BEING_WRITTEN_S = 10.0  # an invalid lock file may be one that is being written, for this long


@dataclass(frozen=True)
class LockHolder:
    """The holder of a lock, as recorded in the lock file.

    Attributes:
        text: The content of the file.
        owner: The process; None if the file is damaged.
        host: The name of its machine.
        since: When it took the lock, as text.
        what: A description of its work.
        age_s: Seconds since it last touched the file.
        was_read: Whether the file could be read; if not, the owner is unknown.
    """

    text: str
    owner: ProcessIdentity | None
    host: str
    since: str
    what: str
    age_s: float
    was_read: bool = True

    @property
    def is_alive(self) -> bool:
        """Whether the holder still runs, as far as that can be determined."""
        if not self.was_read:  # its age alone is known
            return self.age_s < STALE_S
        if self.owner is None:
            return self.age_s < _BEING_WRITTEN_S
        running = self.owner.is_running()
        return self.age_s < STALE_S if running is None else running

    @property
    def description(self) -> str:
        """The process that holds the lock, for a message."""
        if not self.was_read:
            return "a process whose lock cannot be read just now"
        if self.owner is None:
            return "a process that is just starting"
        who = f"process {self.owner.pid} on {self.host}, since {self.since} ({self.what})"
        if not self.owner.is_here:
            free_in = max(1, round(STALE_S - self.age_s))
            who += (
                f"; it was alive {max(0, round(self.age_s))} s ago, and counts as ended after "
                f"another {free_in} s without a sign of life"
            )
        return who


class LockFile:
    """A lock file of this process, touched regularly by a thread while it exists."""

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
        """Write the lock's content under a temporary name beside it, and return the path.

        Raises:
            OSError: The file cannot be written.
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
        """Start the thread that touches the file regularly."""
        threading.Thread(target=self._beat, name="lock", daemon=True).start()

    def end(self) -> None:
        """Stop touching the file, and remove it unless another process has replaced it.

        On Windows a file that another process is reading cannot be removed, so this retries for a
        while.
        """
        self._ended.set()
        for pause in (0.0, *(_REMOVED_AFTER_S if os.name == "nt" else ())):
            time.sleep(pause)
            text = _text_if_read(self.file)
            if text is not None and text != self._text:
                return
            with contextlib.suppress(OSError):
                if text is not None:
                    self.file.unlink()
                    return

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            text = _text_if_read(self.file)
            if text is None:
                continue  # unreadable for the moment, which does not mean that it is lost
            self.is_lost = text not in (self._text, "")
            if text != self._text:
                continue
            with contextlib.suppress(OSError):
                os.utime(self.file)


def create_lock(partial: Path, lock: Path) -> bool:
    """Create the lock file from `partial`, atomically; return False if it already exists."""
    try:
        os.link(partial, lock)
    except FileExistsError:
        return False
    except OSError:  # a disk without hard links, such as exFAT
        try:
            with lock.open("x", encoding="utf-8") as file:
                file.write(partial.read_text(encoding="utf-8"))
        except FileExistsError:
            return False
    return True


def remove_dead(lock: Path, holder: LockHolder, partial: Path) -> None:
    """Remove the lock of a dead process, unless another process has replaced it already.

    This is done under a second lock: if two processes found the same dead lock, the slower one
    would otherwise remove the lock that a third has taken since.

    Args:
        lock: The lock file of the dead process.
        holder: The content of that file.
        partial: A file with the content of this process's own lock.
    """
    breaking = lock.with_name(f"{lock.name.removesuffix('.lock')}.breaking.lock")
    if not create_lock(partial, breaking):
        other = read_lock(breaking, now=partial.stat().st_mtime)
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


def read_lock(file: Path, *, now: float) -> LockHolder | None:
    """Read a lock file; None if it is missing. `now` is the time of the disk's clock."""
    try:
        touched = file.stat().st_mtime
    except OSError:
        return None
    text = _text_if_read(file)
    try:
        said = parse_json(text or "")
        owner = parse_process_token(said["owner"])
        host, since, what = (str(said[name])[:100] for name in ("host", "since", "what"))
    except (ValueError, KeyError, TypeError):
        owner, host, since, what = None, "", "", ""
    age_s = max(0.0, now - touched)
    return LockHolder(text or "", owner, host, since, what, age_s, was_read=text is not None)


def _text_of(file: Path) -> str:
    return _text_if_read(file) or ""


def _text_if_read(file: Path) -> str | None:
    """Return the content of a lock file; empty if it is missing, None if it is unreadable now."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    except OSError:
        return None
