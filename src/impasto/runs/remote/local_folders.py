"""The local folders of a run in an object store.

Below the folder for copies, in `runs`, in a folder that is named by a hash of the URL:

work        a folder of the run's name, in which it is trained
read        a folder of the run's name, with files that were fetched for reading
sent.json   the record of which files of `work` are in the store, and whose turn it was
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from impasto.parsing import read_object
from impasto.remote_paths import copies_folder, is_remote, local_folder_of

RECORD = "sent.json"
_NO_NAME = re.compile(r'[<>:"|?*\\\x00-\x1f]')


def home_of(location: Path) -> Path:
    """Return the folder with everything that this machine has of a run in a store."""
    return local_folder_of(location, "runs")


def working_folder(location: Path) -> Path:
    """Return the folder in which a run in a store is trained."""
    return home_of(location) / "work" / _name_of(location)


def reading_folder(location: Path) -> Path:
    """Return the folder for files of a run, or of a model, that are fetched for reading."""
    return home_of(location) / "read" / _name_of(location)


def location_of(path: Path) -> Path | None:
    """Return the location in a store that a run belongs in; None for a run on a disk.

    Args:
        path: A URL, or a folder, which may be the working folder of a run in a store.
    """
    if is_remote(path):
        return path
    home = _home_above(path)
    location = None if home is None else (read_object(home / RECORD) or {}).get("place")
    return Path(location) if isinstance(location, str) and is_remote(location) else None


def is_working_folder(path: Path) -> bool:
    """Return whether a folder is, or would be, one in which a run in a store is trained."""
    return _home_above(path) is not None


def _home_above(path: Path) -> Path | None:
    """Return the folder of everything of the run whose working folder a path is, or None."""
    real, runs = Path(os.path.realpath(path)), Path(os.path.realpath(copies_folder() / "runs"))
    inside = real.relative_to(runs).parts if real.is_relative_to(runs) else ()
    return runs / inside[0] if len(inside) == 3 and inside[1] == "work" else None


def _name_of(location: Path) -> str:
    """Return the last part of a URL, as a file name that every system accepts."""
    return _NO_NAME.sub("_", location.name) or "run"
