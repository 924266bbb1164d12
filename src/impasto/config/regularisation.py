"""Checks of regularisation images: they need training images, and a weight needs them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from impasto.config.dataset import DatasetEntry, SubsetConfig


def require_balance(subsets: Sequence[SubsetConfig]) -> None:
    """Check that a dataset with regularisation images also has training images.

    Raises:
        ValueError: All subsets in use have `is_reg`, or one folder or file is given with it and
            without.
    """
    shown = [subset for subset in subsets if subset.num_repeats]
    trained = {_location_of(subset) for subset in shown if not subset.is_reg}
    if shown and not trained:
        raise ValueError(
            "all its subsets have is_reg, so there is nothing to train on: regularisation images "
            "are shown as often as the training images. Add a subset without is_reg"
        )
    for subset in shown:
        if subset.is_reg and _location_of(subset) in trained:
            raise ValueError(
                f"{_location_of(subset)} is given twice, with is_reg and without. Regularisation "
                f"images are other images of the class: remove one of the two subsets"
            )


def require_weighted(datasets: Sequence[DatasetEntry]) -> None:
    """Check that there are regularisation images if a weight for them is set.

    Raises:
        ValueError: `prior_loss_weight` is set, and no subset has `is_reg`.
    """
    weighted = any(dataset.prior_loss_weight != 1 for dataset in datasets)
    subsets = [subset for entry in datasets for subset in entry.subsets if subset.num_repeats]
    if weighted and not any(subset.is_reg for subset in subsets):
        raise ValueError(
            "prior_loss_weight has no effect without regularisation images: set is_reg in their "
            "subset, or remove it"
        )


def _location_of(subset: SubsetConfig) -> Path | None:
    return subset.metadata_file or subset.image_dir
