"""`image_losses.csv` of a run directory: shows which images are learned worse than others.

One row each time an image was shown: `step,image,timestep,loss`. A single loss says little, since
it depends on the timestep more than on the image. So each is divided by the mean of all losses at
nearby timesteps; the mean of these ratios, over many showings, distinguishes images: 1 is average.
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
"""Width of the ranges of timesteps within which losses are compared: a twentieth of the usual
1000."""
NEWEST_BYTES = 32 << 20
"""Bytes at the end of the file that are shown for a run: half a million rows, read in about a
second."""


@dataclass(frozen=True)
class ImageLoss:
    """How well an image was learned.

    Attributes:
        image: The image's path in the run.
        ratio: The mean of its losses, each divided by the mean of all at nearby timesteps.
        loss: The mean of its losses.
        times: How often it was shown.
    """

    image: str
    ratio: float
    loss: float
    times: int


def read_image_losses(file: Path, read_bytes: int | None = None) -> list[ImageLoss]:
    """Return the images of a run, those that are learned worst first.

    Damaged rows are skipped; a missing file gives an empty list.

    Args:
        file: `image_losses.csv`.
        read_bytes: Number of bytes to read from the end of a longer file; None reads all.
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
    """Yield the complete rows below the header: step, image, timestep, loss."""
    for line in lines:  # line by line, since an unclosed quote would swallow the rest
        with contextlib.suppress(csv.Error, ValueError):
            (row,) = csv.reader([line])
            step, image, timestep, loss = row
            yield int(step), image, int(timestep), float(loss)


def _add(sums: dict[_Key, tuple[float, int]], key: _Key, loss: float) -> None:
    total, count = sums.get(key, (0.0, 0))
    sums[key] = total + loss, count + 1
