"""The losses of the images of a dataset in a run, from the run's `image_losses.csv`."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from impasto import files
from impasto.runs import RunDirectory
from impasto.runs.image_losses import NEWEST_BYTES, ImageLoss, read_image_losses

Losses = Mapping[str, tuple[float, int]]
"""Path below the dataset -> its loss by the usual one at the same noise, and times shown."""


_Mark = tuple[int, int]
"""Size and time of change of a file."""


def worst_images(run: RunDirectory) -> Sequence[ImageLoss] | None:
    """The images of a run, those that are learnt worst first; None where no losses are written.

    They are kept while the file is as it was.
    """
    mark = _mark_of(run.image_losses_file)
    return None if mark is None else _newest(run.image_losses_file, mark)


def read_losses(run: RunDirectory, dataset: Path) -> Losses:
    """The losses of the images of a dataset; of those that the run was not shown, none."""
    mark = _mark_of(run.image_losses_file)
    if mark is None:
        return {}
    folder = str(run.status().get("folder", ""))
    return _of_dataset(run.image_losses_file, mark, folder, dataset)


def _mark_of(file: Path) -> _Mark | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=2)
def _newest(file: Path, _: _Mark) -> Sequence[ImageLoss]:
    """The images of a file that has not changed since."""
    return read_image_losses(file, NEWEST_BYTES)


@functools.lru_cache(maxsize=4)
def _of_dataset(file: Path, mark: _Mark, folder: str, dataset: Path) -> Losses:
    """The losses of a dataset by a file that has not changed since."""
    found = _newest(file, mark)
    inside = ((_below(one.image, folder, dataset), one) for one in found)
    return {name: (one.ratio, one.times) for name, one in inside if name is not None}


def _below(name: str, folder: str, dataset: Path) -> str | None:
    """The path of an image below a dataset; None where it is not in it."""
    path = os.path.normpath(os.path.join(folder, name))  # noqa: PTH118 - compared as text
    for root in (dataset, files.real_path(dataset)):
        if Path(path).is_relative_to(root):
            return Path(path).relative_to(root).as_posix()
    return None
