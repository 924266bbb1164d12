"""The losses of the images of a dataset in a run, from the run's `image_losses.csv`."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path

from impasto import files
from impasto.runs import RunDirectory
from impasto.runs.image_losses import read_image_losses

READ_BYTES = 32 << 20
"""Of a longer file the newest rows are read: half a million of them take about a second."""

Losses = Mapping[str, tuple[float, int]]
"""Path below the dataset -> its loss by the usual one at the same noise, and times shown."""


def read_losses(run: RunDirectory, dataset: Path) -> Losses:
    """The losses of the images of a dataset; of those that the run was not shown, none."""
    try:
        status = run.image_losses_file.stat()
    except OSError:
        return {}
    folder = str(run.status().get("folder", ""))
    mark = (status.st_size, status.st_mtime_ns)
    return _read(run.image_losses_file, mark, folder, dataset)


@functools.lru_cache(maxsize=4)
def _read(file: Path, _: tuple[int, int], folder: str, dataset: Path) -> Losses:
    """The losses of a file that has not changed since."""
    found = read_image_losses(file, READ_BYTES)
    inside = ((_below(one.image, folder, dataset), one) for one in found)
    return {name: (one.ratio, one.times) for name, one in inside if name is not None}


def _below(name: str, folder: str, dataset: Path) -> str | None:
    """The path of an image below a dataset; None where it is not in it."""
    path = os.path.normpath(os.path.join(folder, name))  # noqa: PTH118 - compared as text
    for root in (dataset, files.real_path(dataset)):
        if Path(path).is_relative_to(root):
            return Path(path).relative_to(root).as_posix()
    return None
