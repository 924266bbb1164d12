"""Decides which process may write a run in a store: one at a time, by numbered turns.

`owners/00000003.json` below the run is the third turn at writing it. A process takes the next
number, which the store gives to one process only (`storage/claims.py`), and sends a heartbeat every
minute by uploading its file again. The highest number owns the run; a process that finds a higher
one than its own stops. So nothing is ever removed to take over a run, and two processes that find
the same dead owner cannot both get the next turn. The scheme is that of Morling, "Leader Election
With S3 Conditional Writes" (2024); such numbers are known as fencing tokens (Kleppmann, "How to do
distributed locking", 2016).

This relies on a listing showing everything that was uploaded before it, as S3's has since 2020, and
Google's does. In a store without that, or without conditional writes, two machines that start
within the same seconds notice each other only at the next heartbeat, a minute later.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from impasto import files
from impasto.errors import RunError, StorageError
from impasto.owners import ProcessIdentity, current_process, parse_process_token
from impasto.parsing import parse_json
from impasto.remote_paths import shown
from impasto.runs.remote.contents import OWNERS
from impasto.storage import claims, objects

BEAT_S = 60.0
"""Seconds between two heartbeats."""

STALE_S = 300.0
"""Seconds without a heartbeat after which an owner on another machine counts as ended."""


_HELD: set[str] = set()
"""Random texts that mark the turns that this process has now."""


@dataclass(frozen=True)
class Owner:
    """The process with the newest turn at writing a run, according to the store.

    Attributes:
        number: The turn.
        text: The content of its file.
        process: The process; None if the file is damaged.
        host: The name of its machine.
        since: When it started, for display.
        has_ended: Whether it has released the run.
    """

    number: int
    text: str
    process: ProcessIdentity | None
    host: str
    since: str
    has_ended: bool

    @property
    def description(self) -> str:
        """The process and machine that write the run, for a message."""
        if self.process is None:
            return "a process that the store does not describe"
        return f"process {self.process.pid} on {self.host}, since {self.since}"


def newest_owner(location: Path) -> Owner | None:
    """Return the process with the newest turn; None if the run was never written.

    Raises:
        StorageError: The store cannot be used.
    """
    number = _newest_number(location)
    if number == 0:
        return None
    try:
        text = objects.read(_file_of(location, number)).decode("utf-8", "replace")
    except FileNotFoundError:
        text = ""
    except OSError as error:
        raise StorageError(f"{shown(location)}: its owner cannot be read: {error}.") from error
    try:
        said = parse_json(text)
        process = parse_process_token(str(said["process"]))
        host, since = str(said["host"])[:100], str(said["since"])[:100]
        return Owner(number, text, process, host, since, said.get("ended") is True)
    except (ValueError, KeyError, TypeError, AttributeError):
        return Owner(number, text, None, "", "", has_ended=False)


def is_alive(location: Path, owner: Owner) -> bool:
    """Return whether an owner may still write the run.

    Raises:
        StorageError: The store cannot be used.
    """
    if owner.has_ended:
        return False
    if owner.process == current_process() and not any(own in owner.text for own in _HELD):
        return False  # this process has released it, and could not record that
    running = owner.process.is_running() if owner.process is not None else None
    return _age_s(location, owner) < STALE_S if running is None else running


class _Moment:
    """A point in time, to measure how long ago it was.

    The monotonic clock of Linux and of macOS stops while the machine sleeps, and the wall clock may
    be set: the larger difference is used, since a check too many costs only a request.
    """

    def __init__(self) -> None:
        self._steady, self._wall = time.monotonic(), time.time()

    def age_s(self) -> float:
        """Return the seconds since this object was created, by the clock that shows more."""
        return max(time.monotonic() - self._steady, time.time() - self._wall)


class Ownership:
    """This process's turn at writing a run; heartbeats are sent while the context is open.

    Args:
        location: The run.
        asks: Called before a turn is requested: with the owner before, if any, the number of the
            new turn, and the random text in its file.

    Attributes:
        number: The turn.
        before: The owner before, if any.

    Raises:
        RunError: Another process has the run, or was faster.
        StorageError: The store cannot be used. It may have granted the turn even so.
    """

    def __init__(
        self,
        location: Path,
        asks: Callable[[Owner | None, int, str], None] = lambda *_: None,
    ) -> None:
        self._location = location
        before = newest_owner(location)
        if before is not None and is_alive(location, before):
            raise RunError(_taken(location, before))
        self.number = 1 if before is None else before.number + 1
        self.before = before
        self._said = {
            "process": current_process().token,
            "host": socket.gethostname(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            "random": os.urandom(8).hex(),
        }
        asks(before, self.number, self._said["random"])
        if not claims.create(_file_of(location, self.number), self._content()):
            raise RunError(
                f"Another process has just begun to write {shown(location)}. Nothing was changed."
            )
        _HELD.add(self._said["random"])
        self._ended = threading.Event()
        self._taken_by = ""
        self._seen_at = _Moment()
        self._looking = threading.Lock()

    def __enter__(self) -> Ownership:
        threading.Thread(target=self._beat, name="owner", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Release the run; if the store does not respond now, the turn expires later."""
        self._ended.set()
        _HELD.discard(self._said["random"])
        with self._looking, contextlib.suppress(StorageError, OSError):
            if not self._taken_by and self._find_another() == "":
                claims.write(_file_of(self._location, self.number), self._content(ended=True))

    def taken_over(self) -> str:
        """Return a description of the process that took over the run, as last checked, or empty."""
        return self._taken_by

    def require_fresh(self) -> None:
        """Check for a newer owner if the last check is long ago, before anything is changed.

        Raises:
            StorageError: The store cannot be used.
        """
        if self._seen_at.age_s() > STALE_S / 2:
            self.look()

    def look(self) -> None:
        """Send a heartbeat, unless another process has taken over the run.

        Raises:
            StorageError: The store cannot be used.
        """
        with self._looking:
            seen_at = _Moment()
            self._taken_by = self._taken_by or self._find_another()
            if not self._taken_by and not self._ended.is_set():
                claims.write(_file_of(self._location, self.number), self._content())
                self._seen_at = seen_at

    def _find_another(self) -> str:
        found = newest_owner(self._location)
        if found is None:  # the run was removed from the store
            return ""
        is_own = found.number == self.number and self._said["random"] in found.text
        return "" if is_own or found.number < self.number else found.description

    def _content(self, *, ended: bool = False) -> bytes:
        return files.json_text({**self._said, "ended": ended}, indent=1).encode()

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            with contextlib.suppress(StorageError, OSError):  # the next one may get through
                self.look()
            if self._taken_by:
                return


def _taken(location: Path, owner: Owner) -> str:
    message = f"{shown(location)} is being written by {owner.description}. Nothing was changed."
    if owner.process is not None and owner.process.is_here:
        return f"{message} Wait until it has ended, or stop it with Ctrl-C where it runs."
    return (
        f"{message} If it was killed, it counts as ended once it has sent no heartbeat "
        f"to the store for {STALE_S / 60:.0f} minutes; then the same command continues."
    )


def _age_s(location: Path, owner: Owner) -> float:
    """Return the seconds since an owner's last heartbeat, by the store's clock."""
    touched = claims.modified_at(_file_of(location, owner.number))
    return STALE_S if touched is None else claims.clock_of(location / OWNERS) - touched


def _newest_number(location: Path) -> int:
    names = (key.removesuffix(".json") for key in objects.find(location / OWNERS).objects)
    return max((int(name) for name in names if _is_number(name)), default=0)


def _is_number(name: str) -> bool:
    return len(name) == 8 and name.isascii() and name.isdigit()


def _file_of(location: Path, number: int) -> Path:
    return location / OWNERS / f"{number:08d}.json"
