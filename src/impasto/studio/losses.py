"""Reads the losses of a dataset's images in a run from the run's `image_losses.csv`."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from impasto import files
from impasto.runs import RunDirectory
from impasto.runs.image_losses import NEWEST_BYTES, ImageLoss, read_image_losses

Losses = Mapping[str, tuple[float, int]]
"""Path relative to the dataset -> loss divided by the usual loss at the same noise level, and the
number of times that the image was shown."""


_Mark = tuple[int, int]
"""Size in bytes and modification time in nanoseconds of a file."""


def worst_images(run: RunDirectory) -> Sequence[ImageLoss] | None:
    """Return the images of a run by falling relative loss; None if the run records no losses.

    The result is cached while the file is unchanged.
    """
    mark = _mark_of(run.image_losses_file)
    return None if mark is None else _newest(run.image_losses_file, mark)


def read_losses(run: RunDirectory, dataset: Path) -> Losses:
    """Return the losses of a dataset's images in a run; images not shown in it are left out."""
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
    """Return the losses in a file, cached by the file's mark."""
    return read_image_losses(file, NEWEST_BYTES)


@functools.lru_cache(maxsize=4)
def _of_dataset(file: Path, mark: _Mark, folder: str, dataset: Path) -> Losses:
    """Return the losses of a dataset's images in a file, cached by the file's mark."""
    found = _newest(file, mark)
    inside = ((_below(one.image, folder, dataset), one) for one in found)
    return {name: (one.ratio, one.times) for name, one in inside if name is not None}


def _below(name: str, folder: str, dataset: Path) -> str | None:
    """Return the path of an image relative to a dataset, or None if it is outside."""
    path = os.path.normpath(os.path.join(folder, name))  # noqa: PTH118 - compared as text
    for root in (dataset, files.real_path(dataset)):
        if Path(path).is_relative_to(root):
            return Path(path).relative_to(root).as_posix()
    return None
