"""What can be chosen in forms: the folders of images and the models that the studio was given."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

from impasto.parsing import is_text
from impasto.studio.datasets import find_datasets
from impasto.studio.folders import Folders
from impasto.studio.models import CHECKPOINT_ENDINGS, is_diffusers, model_files

MOST = 200
"""Choices that a form lists at most; any other one can be typed."""


def image_folders(folders: Sequence[Path]) -> list[str]:
    """The datasets with images in them: run directories, whose images are samples, are none."""
    return _texts(d.path for d in find_datasets(Folders((), folders)) if d.count)


def model_paths(folders: Sequence[Path]) -> list[str]:
    """Files and Diffusers folders that may be models, up to three levels deep."""
    found = itertools.chain.from_iterable(map(model_files, folders))
    return _texts(
        path for path in found if path.suffix.lower() in CHECKPOINT_ENDINGS or is_diffusers(path)
    )


def _texts(paths: Iterable[Path]) -> list[str]:
    return list(dict.fromkeys(str(path) for path in paths if is_text(str(path))))
