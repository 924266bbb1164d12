"""The columns in which image records are stored, and conversions of records to them."""

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
"""Column -> its NumPy type, and how many numbers it holds per image."""
OPTIONAL = ("cut", "wanted", "extra")
"""Columns that are omitted if no image has a value in them."""
NO_CUT = (-1, -1, -1, -1)


class Use(NamedTuple):
    """Properties that many records share: their subset, and the caption of images without one."""

    subset: Subset
    class_tokens: str


def cut_column(cuts: Mapping[int, Cut], count: int) -> np.ndarray:
    """Return the column `cut` [count, 4] for `count` images; rows without a crop are all -1.

    Args:
        cuts: Row -> the manual crop of that image.
        count: Number of images.
    """
    column = np.full((count, 4), -1, dtype=np.int32)
    for row, cut in cuts.items():
        column[row] = (*cut.whole.wh, cut.box.left, cut.box.top)
    return column


def numbers_of(record: ImageRecord, use: int) -> tuple[object, ...]:
    """Return a record's values for the columns of `NUMBERS`, in their order.

    Args:
        record: The record.
        use: The index of its `Use` in the table.
    """
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
    """Return an omitted column, filled with the value that means "none" (-1 for `cut`, else 0)."""
    kind, width = NUMBERS[name]
    nothing = kind(-1 if name == "cut" else 0)
    return np.broadcast_to(nothing, (count,) if width == 1 else (count, width))


def lean(numbers: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the columns without the optional ones in which no image has a value."""
    return {
        name: column
        for name, column in numbers.items()
        if name not in OPTIONAL or (column != (-1 if name == "cut" else 0)).any()
    }
