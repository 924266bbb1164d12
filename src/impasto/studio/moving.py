"""Moves files and folders to names that nothing has yet."""

from __future__ import annotations

import os
from pathlib import Path


def move_to_new_name(path: Path, place: Path) -> None:
    """Rename a file or folder, but never over another, as renaming does on POSIX.

    Raises:
        FileExistsError: Something has the name.
        OSError: It cannot be moved.
    """
    if path.is_dir() and not path.is_symlink():
        if os.path.lexists(place):
            raise FileExistsError(place)
        path.rename(place)  # over a folder that appears just now it fails, unless that is empty
        return
    os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY))  # takes the name
    try:
        path.replace(place)
    except OSError:
        place.unlink()
        raise
