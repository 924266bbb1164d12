"""Checks whether files and folders exist, for paths that users give.

`Path.exists`, `is_file` and `is_dir` of Python 3.11 raise if the system refuses access: a name of
over 255 bytes, or a folder without permission. Here such a path counts as missing, so that callers
can report it; all checks of user input use these functions.
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
    """Return whether a path exists; False if this process has no access to it."""
    return os.path.exists(path)  # noqa: PTH110 - False without access


def is_file(path: Path) -> bool:
    """Return whether a path is a regular file; False if this process has no access to it."""
    return os.path.isfile(path)  # noqa: PTH113 - False without access


def is_dir(path: Path) -> bool:
    """Return whether a path is a folder; False if this process has no access to it."""
    return os.path.isdir(path)  # noqa: PTH112 - False without access


def is_link(path: Path) -> bool:
    """Return whether a path is itself a link: a symbolic one, or a junction of Windows.

    For `Path.is_symlink`, a junction (`mklink /J`) is an ordinary folder, so callers that remove
    or follow folders use this function. Python has `isjunction` from 3.12 on.
    """
    try:
        found = os.lstat(path)
    except (OSError, ValueError):
        return False
    return stat.S_ISLNK(found.st_mode) or getattr(found, "st_reparse_tag", 0) == _JUNCTION


def is_withheld(path: Path) -> bool:
    """Return whether a file or folder may exist but cannot be read now.

    Reasons are a network disk that does not answer, missing permissions, or a link to a disk that
    is disconnected. A path whose file or folder is deleted is not withheld.
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
        elif stat.S_ISREG(status.st_mode):  # opening a FIFO would block
            with path.open("rb") as file:
                file.read(1)
    except OSError:
        return True
    return False


def free_path(wanted: Path) -> Path:
    """Return the first of `wanted`, `wanted-2`, `wanted-3` ... that does not exist.

    `a-2` continues with `a-3`. A number of three digits or more is part of the name, such as a
    date. Callers must still handle that the path exists when they write: another process may be
    faster.
    """
    counted = _COUNTED.fullmatch(wanted.name)
    base = wanted.name if counted is None else counted[1]
    others = (wanted.with_name(f"{base}-{n}") for n in itertools.count(2))
    return next(path for path in itertools.chain([wanted], others) if not exists(path))
