"""The columns that image records are kept in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from impasto.data.records import Cut, ImageRecord
from impasto.data.subsets import Subset

TEXTS = pa.schema([(name, pa.large_string()) for name in ("path", "caption", "tags")])
NUMBERS: dict[str, tuple[type[np.generic], int]] = {
    "width": (np.int32, 1),
    "height": (np.int32, 1),
    "size_bytes": (np.int64, 1),
    "mtime_ns": (np.int64, 1),
    "rotated": (np.uint8, 1),
    "use": (np.int32, 1),
    "cut": (np.int32, 4),
    "wanted": (np.int32, 2),
    "extra": (np.int32, 1),
}
"""Column -> its type and how many numbers an image has in it."""
OPTIONAL = ("cut", "wanted", "extra")
"""Columns that are left out where no image has anything in them."""
NO_CUT = (-1, -1, -1, -1)


class Use(NamedTuple):
    """What records have in common: their subset, and the words of those that have none."""

    subset: Subset
    class_tokens: str


def cut_column(cuts: Mapping[int, Cut], count: int) -> np.ndarray:
    """The column `cut` of so many images, of which some have one."""
    column = np.full((count, 4), -1, dtype=np.int32)
    for row, cut in cuts.items():
        column[row] = (*cut.whole.wh, cut.box.left, cut.box.top)
    return column


def numbers_of(record: ImageRecord, use: int) -> tuple[object, ...]:
    """A record's row of `NUMBERS`."""
    cut, wanted = record.cut, record.wanted
    return (
        *record.size.wh,
        record.stamp.size_bytes,
        record.stamp.mtime_ns,
        record.rotated,
        use,
        (*cut.whole.wh, cut.box.left, cut.box.top) if cut else NO_CUT,
        wanted.wh if wanted else (0, 0),
        record.extra_repeats,
    )


def absent_column(name: str, count: int) -> np.ndarray:
    """A column in which no image has anything."""
    kind, width = NUMBERS[name]
    nothing = kind(-1 if name == "cut" else 0)
    return np.broadcast_to(nothing, (count,) if width == 1 else (count, width))


def lean(numbers: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Leave out optional columns in which no image has a value."""
    return {
        name: column
        for name, column in numbers.items()
        if name not in OPTIONAL or (column != (-1 if name == "cut" else 0)).any()
    }
