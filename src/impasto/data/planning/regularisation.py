"""Regularisation images: how often each comes, so that they balance what is trained on.

DreamBooth (Ruiz et al. 2022, arXiv:2208.12242) trains on images of the class beside those of the
subject, so that the model keeps its idea of the class. How they are counted is the rule of
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
    """What becomes of the regularisation images of a dataset, or of several.

    Attributes:
        images: How many there are.
        used: How many of them come at all; the rest is too many.
        showings: How often they come in an epoch, all together.
        trained: How often the images that are trained on do.
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
    """Repeat or leave out regularisation images until they come as often as the others.

    Each dataset is balanced on its own. Its regularisation images are taken in their order, each
    with the repeats of its subset, until there are as many showings as of its other images; those
    that are left are not used. Where all of them are too few, each comes once more, in turn, as
    often as it takes. The last one that is taken keeps all its repeats, so there may be more
    showings than that.

    Args:
        records: All images of a run that are trained on; their order is kept.

    Raises:
        DatasetError: There are regularisation images alone, or one is trained on as well.
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
            f"(is_reg), which come as often as images that are trained on, and there are none to "
            f"train on. Give images without is_reg, or lower validation.split."
        )
    return table.replaced(extra=(shown - own).astype(np.int32)).select(kept)


def _require_other_images(records: RecordTable, is_reg: np.ndarray) -> None:
    """Make sure that no file is a regularisation image and one that is trained on.

    Folders within each other, links and metadata make that possible, whatever the settings say.
    """
    reg = {record.path.absolute() for record in records.select(is_reg)}
    others = (record.path for record in records.select(~is_reg))
    both = next((path for path in others if path.absolute() in reg), None)
    if both is not None:
        raise DatasetError(
            f"{both} is given twice, as a regularisation image (is_reg) and as one that is trained "
            f"on. Regularisation images are other images of the class: give folders that are not "
            f"within each other, or recursive = false."
        )


def showings_of(repeats: Sequence[int], wanted: int) -> list[int]:
    """How often each regularisation image comes in an epoch, 0 for one that is not used.

    Args:
        repeats: How often its subset asks for each, in their order; 1 or more.
        wanted: Showings of the images that are trained on.
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
    """What balancing did; None where there are no regularisation images.

    Args:
        records: The images before.
        balanced: The same after.
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
