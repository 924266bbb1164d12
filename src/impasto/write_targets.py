"""Checks whether a file of a dataset may be written, as the dataset may be from a stranger.

Links may lead out of a dataset, and paths may be folders or other users' files. Callers that write
beside images check here first; `files.py` writes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from impasto import files
from impasto.temporary_names import LONGEST_NAME


def why_not_written(path: Path, folders: Sequence[Path]) -> str:
    """Return why a file of a dataset must not be written; empty if it may be.

    Args:
        path: The file, which need not exist.
        folders: The allowed folders: a link that leads out of all of them is not followed.
    """
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        return f"the name {path.name} has over {LONGEST_NAME} bytes, which no file system allows"
    if not any(files.is_inside(path, folder) for folder in folders):
        what = "a link that leads" if path.is_symlink() else "its path leads"
        return f"{path.name}: {what} out of the dataset; nothing is written there"
    if os.path.lexists(path) and not path.is_file() and path.exists():
        return f"{path.name} exists and is not a file"
    if path.exists() and not os.access(path, os.R_OK):
        return f"{path.name} cannot be read: it belongs to another user"
    real = files.real_path(path)
    if real.parent.is_dir() and not os.access(real.parent, os.W_OK):
        return f"{path.name} cannot be written: its folder is read-only, or another user's"
    return ""
