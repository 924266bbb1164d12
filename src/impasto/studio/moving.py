"""Moves files and folders to names that nothing has yet."""

from __future__ import annotations

import os
from pathlib import Path


def move_to_new_name(path: Path, target: Path) -> None:
    """Rename a file or folder, but never over another, as renaming does on POSIX.

    Raises:
        FileExistsError: Something has the name.
        OSError: It cannot be moved.
    """
    if path.is_dir() and not path.is_symlink():
        if os.path.lexists(target):
            raise FileExistsError(target)
        path.rename(target)  # over a folder that appears just now it fails, unless that is empty
        return
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))  # takes the name
    try:
        path.replace(target)
    except OSError:
        target.unlink()
        raise
