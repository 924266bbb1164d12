"""What settings of regularisation images need beside them: other images, and each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from impasto.config.dataset import DatasetEntry, SubsetConfig


def require_balance(subsets: Sequence[SubsetConfig]) -> None:
    """Make sure that there is something that a dataset's regularisation images balance.

    Raises:
        ValueError: All subsets that are shown have `is_reg`, or one place is given with it and
            without.
    """
    shown = [subset for subset in subsets if subset.num_repeats]
    trained = {_location_of(subset) for subset in shown if not subset.is_reg}
    if shown and not trained:
        raise ValueError(
            "all its subsets have is_reg, so there is nothing to train on: regularisation images "
            "come as often as those that are trained on. Add a subset without is_reg"
        )
    for subset in shown:
        if subset.is_reg and _location_of(subset) in trained:
            raise ValueError(
                f"{_location_of(subset)} is given twice, with is_reg and without. Regularisation "
                f"images are other images of the class: take one of the two subsets out"
            )


def require_weighted(datasets: Sequence[DatasetEntry]) -> None:
    """Make sure that a weight of regularisation images has any to weigh.

    Raises:
        ValueError: `prior_loss_weight` is given, and no subset has `is_reg`.
    """
    weighted = any(dataset.prior_loss_weight != 1 for dataset in datasets)
    subsets = [subset for entry in datasets for subset in entry.subsets if subset.num_repeats]
    if weighted and not any(subset.is_reg for subset in subsets):
        raise ValueError(
            "prior_loss_weight has no effect without regularisation images: give is_reg to their "
            "subset, or take it out"
        )


def _location_of(subset: SubsetConfig) -> Path | None:
    return subset.metadata_file or subset.image_dir
