"""Counts of a dataset's images: the numbers that all commands and pages show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from impasto.data.record_table import RecordTable
from impasto.data.records import SkippedFile


@dataclass(frozen=True)
class Tally:
    """How many images a dataset has, each file counted once.

    Attributes:
        usable: Images that can be used.
        without_words: Usable images without a caption.
        set_aside: Images that cannot be used.
        also_found: Other files and folders that look like images or captions.
        cut: Usable images with a manual crop.
        by_class: Usable images with their subset's `class_tokens` as caption.
        regularisation: Usable images that are regularisation images.
    """

    usable: int
    without_words: int
    set_aside: int
    also_found: int
    cut: int = 0
    by_class: int = 0
    regularisation: int = 0

    def rows(self) -> dict[str, int]:
        """Return labels and numbers for a table."""
        return {
            "Usable images": self.usable,
            **({"Regularisation images": self.regularisation} if self.regularisation else {}),
            "Without captions": self.without_words,
            **({"Captioned by class_tokens": self.by_class} if self.by_class else {}),
            **({"With a manual crop": self.cut} if self.cut else {}),
            "Skipped": self.set_aside,
            **({"Also found": self.also_found} if self.also_found else {}),
        }


def count_images(records: RecordTable, skipped: Sequence[SkippedFile], unused: int) -> Tally:
    """Count the images of a scan, each file once.

    Args:
        records: The usable images.
        skipped: Images that cannot be used.
        unused: How many other files look like images or captions.
    """
    first = records.first_of_paths()
    own = records.matches("caption", str.strip) | records.matches("tags", str.strip)
    classed = records.per_use(lambda use: bool(use.class_tokens)).astype(np.bool_)
    captioned = own | records.per_use(lambda use: bool(use.class_tokens.strip())).astype(np.bool_)
    is_reg = records.per_use(lambda use: use.subset.is_reg).astype(np.bool_)

    def count(images: np.ndarray) -> int:
        """Count the different files among some images; one that occurs twice counts once."""
        if records.is_distinct:
            return int(images.sum())
        return int(records.select(images).first_of_paths().sum())

    usable = int(first.sum())
    unusable = records.without_known({item.path for item in skipped})
    return Tally(
        usable=usable,
        without_words=usable - count(captioned),
        set_aside=len(unusable),
        also_found=unused,
        cut=count(records.column("cut")[:, 0] >= 0),
        by_class=count(classed & ~own),
        regularisation=count(is_reg),
    )
