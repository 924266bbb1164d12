"""The mean loss of each image of a dataset in a run, from the run's `image_losses.csv`."""

from __future__ import annotations

import csv
import functools
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from impasto import files
from impasto.runs import RunDirectory

READ_BYTES = 32 << 20
"""Of a longer file the newest rows are read: half a million of them take less than a second."""

Losses = Mapping[str, tuple[float, int]]
"""Path below the dataset -> the mean of its losses, and how many there are."""


def read_losses(run: RunDirectory, dataset: Path) -> Losses:
    """The mean losses of the images of a dataset; of those that the run was not shown, none."""
    try:
        status = run.image_losses_file.stat()
    except OSError:
        return {}
    folder = str(run.status().get("folder", ""))
    mark = (status.st_size, status.st_mtime_ns)
    return _read(run.image_losses_file, mark, folder, dataset)


@functools.lru_cache(maxsize=4)
def _read(file: Path, mark: tuple[int, int], folder: str, dataset: Path) -> Losses:
    """The losses of a file that has not changed since."""
    sums: dict[str, list[float]] = {}
    try:
        with file.open("rb") as content:
            if mark[0] > READ_BYTES:
                content.seek(mark[0] - READ_BYTES)
                content.readline()  # the rest of a row
            for name, loss in _rows(content):
                own = sums.setdefault(name, [0.0, 0.0])
                own[0] += loss
                own[1] += 1
    except OSError:
        return {}
    named = {name: _below(name, folder, dataset) for name in sums}
    return {
        inside: (sums[name][0] / sums[name][1], int(sums[name][1]))
        for name, inside in named.items()
        if inside is not None
    }


def _rows(lines: Iterable[bytes]) -> Iterator[tuple[str, float]]:
    """Names and losses of the rows that are whole; others are left out."""
    for line in lines:
        try:
            (row,) = csv.reader([line.decode("utf-8")])
            _, name, _, loss = row
            value = float(loss)
        except (ValueError, csv.Error):
            continue
        if abs(value) < 1e30:
            yield name, value


def _below(name: str, folder: str, dataset: Path) -> str | None:
    """The path of an image below a dataset; None where it is not in it."""
    path = os.path.normpath(os.path.join(folder, name))  # noqa: PTH118 - compared as text
    for root in (dataset, files.real_path(dataset)):
        if Path(path).is_relative_to(root):
            return Path(path).relative_to(root).as_posix()
    return None
