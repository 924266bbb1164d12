"""Finds sub-folders without images to train on: folders of masks, and Impasto's run directories.

`impasto dataset mask` writes `cats-masks` beside `cats`, and a run's previews may be below the
images it trains on. Does not import NumPy.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from impasto.data.folders.mask_folders import images_of_masks, is_of_masks
from impasto.remote_paths import is_remote

_SETTINGS, _OF_RUNS = "config.toml", ("status.json", "environment.json", "metrics.jsonl")
_MASKS = (
    "by its name a folder of masks, whose images are not trained on; give it as mask_dir, or "
    "rename it to train on its images"
)
_RUN = "a run directory of Impasto, whose samples are not trained on"


class SkippedFolders:
    """Decides which sub-folders of a folder of images are skipped.

    Args:
        masks: The folders of masks named by the settings, in any spelling.
    """

    def __init__(self, masks: Iterable[Path] = ()) -> None:
        self._masks = frozenset(_real(folder) for folder in masks)

    def reason(self, folder: str) -> str | None:
        """Return why a folder is skipped: empty if the settings say so; None if it is not skipped.

        Do not call it for the folder at which a scan starts: that one is never skipped.
        """
        if is_remote(folder):
            return "" if folder in self._masks else None
        if self._masks and _real(folder) in self._masks:
            return ""
        return why_no_images(Path(folder))


def why_no_images(folder: Path) -> str | None:
    """Return why a folder on a disk has no images to train on; None if it may have some."""
    masked = images_of_masks(folder)
    if masked is not None and masked.is_dir() and is_of_masks(_names_in(folder), masked):
        return _MASKS
    has_settings = (folder / _SETTINGS).is_file()
    return _RUN if has_settings and any((folder / name).is_file() for name in _OF_RUNS) else None


def _names_in(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _real(folder: str | Path) -> str:
    if is_remote(folder):
        return str(folder)
    return os.path.normcase(os.path.realpath(folder))
