"""Moves files and folders without replacing anything."""

from __future__ import annotations

import os
from pathlib import Path


def move_to_new_name(path: Path, target: Path) -> None:
    """Rename a file or folder, but do not replace an existing one, as `rename` does on POSIX.

    Raises:
        FileExistsError: The target exists.
        OSError: The file or folder cannot be moved.
    """
    if path.is_dir() and not path.is_symlink():
        if os.path.lexists(target):
            raise FileExistsError(target)
        path.rename(target)  # fails for a folder created meanwhile, unless that is empty
        return
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))  # reserves the name
    try:
        path.replace(target)
    except OSError:
        target.unlink()
        raise
