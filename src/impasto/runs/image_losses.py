"""`image_losses.csv` of a run directory: which images are learnt worse than others.

One row each time an image was shown: `step,image,timestep,loss`. A single loss says little, since
it depends on the timestep more than on the image. So each is divided by the mean of all losses at
about its timestep; the mean of these ratios, over many showings, tells images apart: 1 is usual.
"""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

_Key = TypeVar("_Key")

HEADER = ("step", "image", "timestep", "loss")
TIMESTEP_RANGE = 50
"""Timesteps that are compared with one another: a twentieth of the usual 1000."""
NEWEST_BYTES = 32 << 20
"""What is shown of a run is of so many bytes at the end: half a million rows, about a second's."""


@dataclass(frozen=True)
class ImageLoss:
    """How an image was learnt.

    Attributes:
        image: Its path as the run has it.
        ratio: The mean of its losses, each divided by the mean of all at about its timestep.
        loss: The mean of its losses.
        times: How often it was shown.
    """

    image: str
    ratio: float
    loss: float
    times: int


def read_image_losses(file: Path, read_bytes: int | None = None) -> list[ImageLoss]:
    """The images of a run, those that are learnt worst first.

    Damaged rows are left out; of a file that is not there nothing comes.

    Args:
        file: `image_losses.csv`.
        read_bytes: Of a longer file the newest rows are read, about so many bytes; None is all.
    """
    sums: dict[tuple[str, int], tuple[float, int]] = {}
    ranges: dict[int, tuple[float, int]] = {}
    with contextlib.suppress(OSError), file.open("rb") as content:
        size = os.fstat(content.fileno()).st_size
        if read_bytes is not None and size > read_bytes:
            content.seek(size - read_bytes)
            content.readline()  # the rest of a row
        lines = io.TextIOWrapper(content, encoding="utf-8", errors="replace", newline="")
        for _, image, timestep, loss in whole_rows(lines):
            if math.isfinite(loss):
                range_index = timestep // TIMESTEP_RANGE
                _add(sums, (image, range_index), loss)
                _add(ranges, range_index, loss)
    usual = {range_index: total / count for range_index, (total, count) in ranges.items()}
    images: dict[str, tuple[float, float, int]] = {}
    for (image, range_index), (total, count) in sums.items():
        ratios, losses, times = images.get(image, (0.0, 0.0, 0))
        ratio = total / usual[range_index] if usual[range_index] else float(count)
        images[image] = ratios + ratio, losses + total, times + count
    found = [ImageLoss(i, ratios / n, total / n, n) for i, (ratios, total, n) in images.items()]
    return sorted(found, key=lambda one: (-one.ratio, one.image))


def whole_rows(lines: Iterable[str]) -> Iterator[tuple[int, str, int, float]]:
    """The rows below the header that are whole: step, image, timestep, loss."""
    for line in lines:  # by lines, since a quote that is never closed would take the rest with it
        with contextlib.suppress(csv.Error, ValueError):
            (row,) = csv.reader([line])
            step, image, timestep, loss = row
            yield int(step), image, int(timestep), float(loss)


def _add(sums: dict[_Key, tuple[float, int]], key: _Key, loss: float) -> None:
    total, count = sums.get(key, (0.0, 0))
    sums[key] = total + loss, count + 1
