"""The folders of this machine that belong to a run in an object store.

Below the folder for copies, in `runs` and there in a folder that is named by a hash of the URL:

work        a folder of the run's name, where it is trained
read        a folder of the run's name, with what was fetched to be looked at
sent.json   what of the first is in the store, and as whose work
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
    """The folder of all that this machine has of a run in a store."""
    return local_folder_of(location, "runs")


def working_folder(location: Path) -> Path:
    """The folder that a run in a store is trained in."""
    return home_of(location) / "work" / _name_of(location)


def reading_folder(location: Path) -> Path:
    """The folder for what is fetched of a run, or of a model, to be read."""
    return home_of(location) / "read" / _name_of(location)


def location_of(path: Path) -> Path | None:
    """The location in a store that a run belongs in; None of a run that is on a disk.

    Args:
        path: A URL, or a folder, which may be the working folder of a run in a store.
    """
    if is_remote(path):
        return path
    home = _home_above(path)
    location = None if home is None else (read_object(home / RECORD) or {}).get("place")
    return Path(location) if isinstance(location, str) and is_remote(location) else None


def is_working_folder(path: Path) -> bool:
    """Whether a folder is, or would be, one that a run in a store is trained in."""
    return _home_above(path) is not None


def _home_above(path: Path) -> Path | None:
    """The folder of all that belongs to the run whose working folder a path is."""
    real, runs = Path(os.path.realpath(path)), Path(os.path.realpath(copies_folder() / "runs"))
    inside = real.relative_to(runs).parts if real.is_relative_to(runs) else ()
    return runs / inside[0] if len(inside) == 3 and inside[1] == "work" else None


def _name_of(location: Path) -> str:
    """The last part of a URL, as a name that every system takes."""
    return _NO_NAME.sub("_", location.name) or "run"
