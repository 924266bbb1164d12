"""Looks whether a file or folder is there, for names that people give.

`Path.exists`, `is_file` and `is_dir` of Python 3.11 raise where the system refuses to look: a name
of over 255 bytes, or a folder that may not be entered. What cannot be looked at is not there for
whoever asks, who then says so in words; a check of input goes through these.
"""

from __future__ import annotations

import itertools
import os
import re
import stat
from pathlib import Path

_JUNCTION = 0xA0000003  # IO_REPARSE_TAG_MOUNT_POINT, which `stat` names on Windows alone

_COUNTED = re.compile(r"(.+)-\d{1,2}", re.ASCII | re.DOTALL)


def exists(path: Path) -> bool:
    """Whether there is anything of that name, as far as this process may look."""
    return os.path.exists(path)  # noqa: PTH110 - False where the system refuses to look


def is_file(path: Path) -> bool:
    """Whether there is a regular file of that name, as far as this process may look."""
    return os.path.isfile(path)  # noqa: PTH113 - False where the system refuses to look


def is_dir(path: Path) -> bool:
    """Whether there is a folder of that name, as far as this process may look."""
    return os.path.isdir(path)  # noqa: PTH112 - False where the system refuses to look


def is_link(path: Path) -> bool:
    """Whether a path is a link itself: symbolic, or a junction of Windows.

    A junction (`mklink /J`) is no link for `Path.is_symlink` but a folder like any other, so
    whoever removes or follows folders asks here. Python has `isjunction` from 3.12 on.
    """
    try:
        found = os.lstat(path)
    except (OSError, ValueError):
        return False
    return stat.S_ISLNK(found.st_mode) or getattr(found, "st_reparse_tag", 0) == _JUNCTION


def is_withheld(path: Path) -> bool:
    """Whether a file or folder may well be there, and cannot be read now.

    That is so of a network disk that does not answer, of missing rights, and of a link to a disk
    that is away. What is gone, its folder included, is not withheld.
    """
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError:
        return True
    try:
        if stat.S_ISLNK(status.st_mode):
            status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            os.scandir(path).close()
        elif stat.S_ISREG(status.st_mode):  # a FIFO would wait for ever
            with path.open("rb") as file:
                file.read(1)
    except OSError:
        return True
    return False


def free_path(wanted: Path) -> Path:
    """The first of `wanted`, `wanted-2`, `wanted-3` ... that is not there; `a-2` goes on to `a-3`.

    A number of three digits or more is no count but a part of the name, such as a date.

    Whoever writes there has to make sure of it again: somebody else may be as quick.
    """
    counted = _COUNTED.fullmatch(wanted.name)
    base = wanted.name if counted is None else counted[1]
    others = (wanted.with_name(f"{base}-{n}") for n in itertools.count(2))
    return next(path for path in itertools.chain([wanted], others) if not exists(path))
