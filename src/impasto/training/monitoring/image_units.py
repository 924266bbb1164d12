"""Means of image losses with standard errors that count copies of an image as one unit."""

from __future__ import annotations

import math
from collections.abc import Sequence

from impasto.runs.validations import MOST_VALUES


def rounded(values: Sequence[float]) -> list[float]:
    """Return values rounded to 8 significant digits, as files store them."""
    return [float(f"{value:.8g}") for value in values]


def mean(values: Sequence[float]) -> float:
    """Return the mean of one or more numbers."""
    return math.fsum(values) / len(values)


def independent_values(losses: Sequence[float], alike: Sequence[int]) -> list[float]:
    """Return values of independent units, with the mean of all images and its standard error.

    Copies of an image form one unit. Its value is the linearised ratio estimator of cluster
    sampling (Cochran 1977, "Sampling Techniques", section 3.12): the overall mean plus the summed
    deviations of its images from it, scaled to the number of units. Without copies, the values are
    the losses. If there are more than `MOST_VALUES` units, some are combined.

    Args:
        losses: The losses of the images.
        alike: The unit number of each image.
    """
    indices = {unit: index for index, unit in enumerate(dict.fromkeys(alike))}
    units = min(len(indices), MOST_VALUES)
    whole, sums, sizes = mean(losses), [0.0] * units, [0] * units
    for loss, unit in zip(losses, alike, strict=True):
        index = indices[unit] % units
        sums[index] += loss
        sizes[index] += 1
    scale = units / len(losses)
    return [whole + (total - whole * size) * scale for total, size in zip(sums, sizes, strict=True)]
