"""Balances regularisation images against training images, by how often each is shown.

DreamBooth (Ruiz et al. 2022, arXiv:2208.12242) trains on images of the class in addition to those
of the subject, so that the model retains its idea of the class. The counting rule is that of
kohya-ss/sd-scripts, `library/train_util.py`, DreamBoothDataset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from impasto.data.record_table import RecordTable
from impasto.data.records import ImageRecord
from impasto.errors import DatasetError
from impasto.progress import counted


@dataclass(frozen=True)
class Balance:
    """The balance of regularisation and training images in one or more datasets.

    Attributes:
        images: Number of regularisation images.
        used: How many of them are shown at all; the rest is surplus.
        showings: How often they are shown per epoch, all together.
        trained: How often the training images of the same datasets are shown per epoch.
    """

    images: int = 0
    used: int = 0
    showings: int = 0
    trained: int = 0

    def __str__(self) -> str:
        return (
            f"{self.used:,} of {self.images:,} used, {counted(self.showings, 'showings')} per "
            f"epoch beside {self.trained:,} of the images trained on"
        )


def balance(records: Sequence[ImageRecord]) -> RecordTable:
    """Repeat or leave out regularisation images until they are shown as often as the others.

    Each dataset is balanced separately. Its regularisation images are taken in order, each with the
    repeats of its subset, until there are as many showings as of its other images; the remaining
    ones are not used. If all of them are too few, each is shown once more, in turn, as often as
    needed. The last one taken retains all its repeats, so there may be more showings than that.

    Args:
        records: All images that a run trains on; their order is retained.

    Raises:
        DatasetError: There are only regularisation images, or one is a training image as well.
    """
    table = RecordTable.of(records)
    is_reg = table.per_use(lambda use: use.subset.is_reg).astype(np.bool_)
    if not is_reg.any():
        return table
    _require_other_images(table, is_reg)
    datasets, own = table.subset_numbers, table.per_use(lambda use: use.subset.repeats)
    shown = np.where(is_reg, 0, table.repeats)
    for dataset in np.unique(datasets[is_reg]).tolist():
        wanted = int(own[(datasets == dataset) & ~is_reg].sum())
        rows = np.flatnonzero((datasets == dataset) & is_reg)
        shown[rows] = showings_of(own[rows].tolist(), wanted)
    kept = ~is_reg | (shown > 0)
    if not kept.any():
        raise DatasetError(
            f"All {counted(len(table), 'images')} that can be used are regularisation images "
            f"(is_reg), which are shown as often as training images, and there are no training "
            f"images. Add images without is_reg, or lower validation.split."
        )
    return table.replaced(extra=(shown - own).astype(np.int32)).select(kept)


def _require_other_images(records: RecordTable, is_reg: np.ndarray) -> None:
    """Check that no file is both a regularisation image and a training image.

    Nested folders, links and metadata make that possible, whatever the settings are.

    Raises:
        DatasetError: A file is both.
    """
    reg = {record.path.absolute() for record in records.select(is_reg)}
    others = (record.path for record in records.select(~is_reg))
    both = next((path for path in others if path.absolute() in reg), None)
    if both is not None:
        raise DatasetError(
            f"{both} is given twice, as a regularisation image (is_reg) and as a training image. "
            f"Regularisation images are other images of the class: set folders that are not within "
            f"each other, or recursive = false."
        )


def showings_of(repeats: Sequence[int], wanted: int) -> list[int]:
    """Return how often each regularisation image is shown per epoch; 0 for one that is not used.

    Args:
        repeats: The repeats of each one's subset, in their order; 1 or more.
        wanted: How often the training images are shown.
    """
    shown, total = [0] * len(repeats), 0
    for i, own in enumerate(repeats):
        if total >= wanted:
            break
        shown[i] = own
        total += own
    rounds, rest = divmod(max(0, wanted - total), len(repeats)) if repeats else (0, 0)
    return [own + rounds + (i < rest) for i, own in enumerate(shown)]


def count_balance(
    records: Sequence[ImageRecord], balanced: Sequence[ImageRecord]
) -> Balance | None:
    """Count regularisation images and showings after balancing; None if there are no such images.

    Args:
        records: The images before balancing.
        balanced: The images after balancing.
    """
    table, after = RecordTable.of(records), RecordTable.of(balanced)
    is_reg = table.per_use(lambda use: use.subset.is_reg).astype(np.bool_)
    if not is_reg.any():
        return None
    used = after.per_use(lambda use: use.subset.is_reg).astype(np.bool_)
    concerned = np.isin(after.subset_numbers, table.subset_numbers[is_reg])
    return Balance(
        int(is_reg.sum()),
        int(used.sum()),
        int(after.repeats[used].sum()),
        int(after.repeats[concerned & ~used].sum()),
    )
