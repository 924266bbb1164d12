"""Which folders are datasets and which files their images, as addresses name them."""

from __future__ import annotations

from pathlib import Path

from impasto.data.formats import EXTENSIONS
from impasto.studio.folders import Folders, path_of


def dataset_of(folders: Folders, name: str) -> Path | None:
    """The folder of images that an address names; None where there is none."""
    path = path_of(folders.data, name)
    try:
        return path if path is not None and path.is_dir() else None
    except (OSError, ValueError):
        return None


def image_of(dataset: Path, name: str) -> Path | None:
    """The image of a dataset that an address names.

    None for what is no image by its ending, hidden, not there, or outside, links followed.
    """
    path = path_of([dataset], name)
    if path is None or path.suffix.lower() not in EXTENSIONS:
        return None
    inside = path.relative_to(dataset).parts
    try:
        is_shown = not any(part.startswith(".") for part in inside) and path.is_file()
    except (OSError, ValueError):
        return None
    return path if is_shown else None
