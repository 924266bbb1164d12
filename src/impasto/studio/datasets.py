"""Datasets and images by the names that addresses have for them."""

from __future__ import annotations

from pathlib import Path

from impasto.data.formats import EXTENSIONS
from impasto.studio.folders import Folders, path_of


def dataset_of(folders: Folders, name: str) -> Path | None:
    """The folder of images that an address names; None where there is none in the folders given."""
    path = path_of(folders.data, name)
    if path is None:
        return None
    inside = next(path.relative_to(f) for f in folders.data if path.is_relative_to(f))
    try:
        return path if path.is_dir() and not _is_hidden(inside) else None
    except (OSError, ValueError):
        return None


def image_of(dataset: Path, name: str) -> Path | None:
    """The image of a dataset that an address names.

    None where it is no image file by its ending, is hidden, leads out of the dataset by a link, or
    is not there.
    """
    path = path_of([dataset], name)
    if path is None or path.suffix.lower() not in EXTENSIONS:
        return None
    try:
        is_there = path.is_file()
    except (OSError, ValueError):
        return None
    return path if is_there and not _is_hidden(path.relative_to(dataset)) else None


def _is_hidden(inside: Path) -> bool:
    return any(part.startswith(".") for part in inside.parts)
