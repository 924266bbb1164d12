"""Temporary names for files being written, and the removal of files left under them.

A temporary name contains the identity of the writing process, so that leftovers of killed processes
are distinguished from files that are being written.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import time
import uuid
from pathlib import Path

from impasto.owners import TOKEN_PATTERN, current_process, parse_process_token

PARTIAL_SUFFIX = ".partial"
REPLACED_SUFFIX = ".replaced"
"""The suffix of a folder's temporary name while another folder is put in its place."""

_OWNED = re.compile(
    rf"\.(?P<name>.+)\.(?P<owner>{TOKEN_PATTERN})\.[0-9a-f]{{8}}"
    rf"(?P<end>{re.escape(PARTIAL_SUFFIX)}|{re.escape(REPLACED_SUFFIX)})"
)
_LEFT_AFTER_S = 24 * 3600.0  # a file of another machine untouched for longer is a leftover
_DATED = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}", re.ASCII)
LONGEST_NAME = 255  # bytes of a file name on Linux and macOS; Windows counts letters


def shortened(name: str, most: int) -> str:
    """Return the start of a name, at most `most` bytes long, without splitting a character."""
    while len(os.fsencode(name)) > most:
        name = name[:-1]
    return name


def partial_name(path: Path, suffix: str = PARTIAL_SUFFIX) -> Path:
    """Return a new temporary name beside `path` that identifies this process to `remove_leftovers`.

    Long names are shortened, so that the temporary name is not longer than file systems allow.
    """
    end = f".{current_process().token}.{uuid.uuid4().hex[:8]}{suffix}"
    return path.with_name(f".{shortened(path.name, LONGEST_NAME - 1 - len(end))}{end}")


def dated_name() -> str:
    """Return a new, unique name for a directory; such names sort by time.

    The name is the local time to the second, then the microsecond in five hexadecimal digits, then
    a random digit.
    """
    second, of_second = divmod(time.time_ns() // 1000, 1_000_000)
    day = time.strftime("%Y%m%d-%H%M%S", time.localtime(second))
    return f"{day}-{of_second:05x}{secrets.randbelow(16):x}"


def new_dated_folder(parent: Path) -> Path:
    """Create a folder with a dated name, which no other process gets at the same moment.

    Raises:
        OSError: The folder cannot be created.
    """
    parent.mkdir(parents=True, exist_ok=True)
    while True:
        folder = parent / dated_name()
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder


def is_dated_name(name: str) -> bool:
    """Return whether a name has the form of `dated_name`."""
    return _DATED.fullmatch(name) is not None


def _modified_at(path: Path) -> float:
    """Return the time of the last change of a file or in a folder; now if that is unknown."""
    try:
        inside = list(path.rglob("*")) if path.is_dir() else []
        return max(item.lstat().st_mtime for item in (path, *inside))
    except OSError:
        return time.time()


def remove_leftovers(folder: Path) -> int:
    """Remove temporary files of killed processes in `folder`, and return their number.

    The name of a temporary file identifies its process. Temporary files of other programs and of
    running processes are not touched, nor are those of another machine (on a network disk) that
    were modified within a day. A folder whose replacement was interrupted gets its name back. Files
    that cannot be removed, such as another user's, stay.
    """
    leftovers = [path for path in partial_files_in(folder) if is_stale_partial(path)]
    return sum(_is_removed(leftover) for leftover in leftovers)


def _is_removed(leftover: Path) -> bool:
    """Remove a leftover, or restore its original name; return False if neither is possible."""
    match = _OWNED.fullmatch(leftover.name)
    path = leftover.with_name(match["name"]) if match else leftover
    try:
        if leftover.name.endswith(REPLACED_SUFFIX) and not os.path.lexists(path):
            leftover.replace(path)
        elif leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
    except OSError:
        return False
    return not os.path.lexists(leftover)


def partial_files_in(folder: Path) -> list[Path]:
    """Return the files in a folder with temporary names of Impasto, of running processes or not."""
    try:
        return sorted(path for path in folder.glob(".*") if _OWNED.fullmatch(path.name))
    except OSError:
        return []


def is_stale_partial(partial: Path) -> bool:
    """Return whether the process that was writing a temporary file or folder has ended."""
    match = _OWNED.fullmatch(partial.name)
    owner = parse_process_token(match["owner"]) if match else None
    if owner is None:
        return False
    running = owner.is_running()
    if running is None:  # on another machine; its clock, or this one's, may be wrong by days
        return disk_time(partial.parent) - _modified_at(partial) > _LEFT_AFTER_S
    return not running


def disk_time(folder: Path) -> float:
    """Return the time of the clock of a folder's disk, which modification times are based on.

    If nothing can be written there, this machine's clock is used.
    """
    probe = partial_name(folder / "clock")
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
