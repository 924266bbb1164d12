"""Images as independent units: copies of one another are one, in means and in their errors."""

from __future__ import annotations

import math
from collections.abc import Sequence

from impasto.runs.validations import MOST_VALUES


def rounded(values: Sequence[float]) -> list[float]:
    """Values as files have them."""
    return [float(f"{value:.8g}") for value in values]


def mean(values: Sequence[float]) -> float:
    """The mean of one or more numbers."""
    return math.fsum(values) / len(values)


def independent_values(losses: Sequence[float], alike: Sequence[int]) -> list[float]:
    """Values of independent units whose mean is that of all images, and whose error is its error.

    Copies are one unit: its value is what they add to the mean beyond their number (the linearised
    ratio estimator of cluster sampling: Cochran 1977, "Sampling Techniques", section 3.12). A unit
    of one image has its loss, where all units are of one.

    Args:
        losses: Of the images.
        alike: Of each the number of its unit.
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
