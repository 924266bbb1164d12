"""What buckets the pages of a dataset speak of: the same in its gallery and beside a crop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from impasto.config.goal_settings import bucket_sides
from impasto.studio.forms import whole_number
from impasto.studio.pages.data_views import listed_options
from impasto.studio.pages.shown_dataset import Dataset
from impasto.studio.resolutions import USUAL, bucket_options

OFFERED = (64, 128, 256, 384, 512, 640, 768, 1024)
"""Resolutions that a page of an image offers, beside that of its dataset."""

_LARGEST = 16_384


def known_options(dataset: Dataset) -> dict[str, str]:
    """Options of `impasto dataset list` for a dataset, as a form would have them.

    Those that its list was made with; else what a run or the models say.
    """
    return listed_options(dataset) or options_said(dataset)


def options_said(dataset: Dataset) -> dict[str, str]:
    """What a run that has the dataset, or the models, say of buckets."""
    found = bucket_options(dataset.studio.folders, dataset.path)
    return {name: str(value) for name, value in found.items()}


def resolution_of(known: Mapping[str, str]) -> int:
    """The resolution that is shown where none was chosen, in pixels."""
    return whole_number(known.get("resolution", ""), _LARGEST, 1) or USUAL


def bucket_rules(known: Mapping[str, str], resolution: int) -> dict[str, Any]:
    """Sides of buckets and their step for a resolution, as `BucketRules` names them.

    At the dataset's own resolution they are those of its list; at another, what `impasto new`
    sets for it.
    """
    if resolution != resolution_of(known):
        low, high, step = bucket_sides(resolution)
        return {"min_side": low, "max_side": high, "step": step}
    names = ("min_side", "max_side", "step")
    numbers = {name: whole_number(known.get(name, ""), _LARGEST, 1) for name in names}
    given: dict[str, Any] = {name: number for name, number in numbers.items() if number}
    return {**given, "no_upscale": known.get("no_upscale") == "1"}
