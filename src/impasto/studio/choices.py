"""The choices of forms: image folders and models below the folders that the studio shows."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

from impasto.parsing import is_text
from impasto.studio.datasets import find_datasets
from impasto.studio.folders import Folders
from impasto.studio.models import CHECKPOINT_ENDINGS, is_diffusers, model_files

MOST = 200
"""Maximum number of choices that a form lists; any other one can be typed."""


def image_folders(folders: Sequence[Path]) -> list[str]:
    """Return the paths of datasets that have images; run directories are left out."""
    return _texts(d.path for d in find_datasets(Folders((), folders)) if d.count)


def model_paths(folders: Sequence[Path]) -> list[str]:
    """Return the paths of model files and Diffusers folders, up to three levels deep."""
    found = itertools.chain.from_iterable(map(model_files, folders))
    return _texts(
        path for path in found if path.suffix.lower() in CHECKPOINT_ENDINGS or is_diffusers(path)
    )


def _texts(paths: Iterable[Path]) -> list[str]:
    return list(dict.fromkeys(str(path) for path in paths if is_text(str(path))))
