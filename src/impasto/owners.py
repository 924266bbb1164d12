"""Identifies the process that owns something on disk, and whether it still runs.

A process is identified by its id, its start time and the scope of its id: a machine since its last
boot and, on Linux, a PID namespace (a container has a separate one). Used in the names of temporary
files (`files.py`) and in lock files (`locks.py`).
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

_TOKEN = re.compile(r"([0-9a-f]+)-([0-9a-f]+)-([0-9a-f]{6})")
TOKEN_PATTERN = r"[0-9a-f]+-[0-9a-f]+-[0-9a-f]{6}"
_STARTS_DIFFER_BY = 2  # seconds by which psutil's start time of one process may vary between calls


@dataclass(frozen=True)
class ProcessIdentity:
    """The identity of a process, as recorded on disk.

    Attributes:
        pid: Its process id.
        start: Its start time: clock ticks since boot on Linux, seconds since 1970 elsewhere.
        machine: The scope of the process id, as six hexadecimal digits.
    """

    pid: int
    start: int
    machine: str

    @property
    def token(self) -> str:
        """The identity as text for file names, of at most thirty characters."""
        return f"{self.pid:x}-{self.start:x}-{self.machine}"

    @property
    def is_here(self) -> bool:
        """Whether this process is on the caller's machine and in its PID namespace."""
        return self.machine == _machine()

    def is_running(self) -> bool | None:
        """Return whether the process still runs; None if it is on another machine or namespace."""
        if not self.is_here:
            return None
        start = _start_of(self.pid)
        if start is None:
            return False
        if sys.platform == "linux":
            return start in (self.start, _UNKNOWN_START)
        return start == _UNKNOWN_START or abs(start - self.start) <= _STARTS_DIFFER_BY


def current_process() -> ProcessIdentity:
    """Return the identity of the calling process."""
    return _owner_of(os.getpid())  # cached by process id, because a fork is another process


def boot_mark() -> str:
    """Return an id that changes with each boot of this machine; empty if the system has none."""
    return _text_of("/proc/sys/kernel/random/boot_id") if sys.platform == "linux" else ""


def parse_process_token(text: str) -> ProcessIdentity | None:
    """Return the process of a token; None if the text is not a token."""
    match = _TOKEN.fullmatch(text)
    if match is None or max(len(match[1]), len(match[2])) > 16:
        return None
    return ProcessIdentity(int(match[1], 16), int(match[2], 16), match[3])


def identity_of(pid: int) -> ProcessIdentity:
    """Return the identity of the process that has this id now."""
    return ProcessIdentity(pid, _start_of(pid) or 0, _machine())


@functools.lru_cache(maxsize=4)
def _owner_of(pid: int) -> ProcessIdentity:
    return identity_of(pid)


_UNKNOWN_START = -1
"""The start time of a process that runs but cannot be inspected."""


def _start_of(pid: int) -> int | None:
    """Return the start time of a process; None if it does not exist or is a zombie."""
    return _start_on_linux(pid) if sys.platform == "linux" else _start_elsewhere(pid)


def _start_on_linux(pid: int) -> int | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return _start_of_hidden(pid)
    fields = text.rpartition(")")[2].split()  # the name before may have any character (proc(5))
    ended = fields[0] in "ZX"  # a zombie: ended, and its parent has not asked for the result yet
    return None if ended else int(fields[19])


def _start_of_hidden(pid: int) -> int | None:
    """Return the start of a process that /proc does not list, as it may hide other users' ones."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return _UNKNOWN_START
    except (OSError, OverflowError):
        return None
    return _UNKNOWN_START


def _start_elsewhere(pid: int) -> int | None:
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return int(process.create_time())
    except psutil.AccessDenied:
        return _UNKNOWN_START
    except (psutil.Error, OverflowError, ValueError):
        return None


@functools.lru_cache(maxsize=1)
def _machine() -> str:
    facts = [socket.gethostname()]
    if sys.platform == "linux":
        facts += [_text_of("/proc/sys/kernel/random/boot_id"), _namespace()]
    return hashlib.sha256("\n".join(facts).encode("utf-8")).hexdigest()[:6]


def _text_of(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""
