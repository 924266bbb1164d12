"""The buckets that the pages of a dataset use: the same in the gallery and on image pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from impasto.config.goal_settings import bucket_sides
from impasto.studio.forms import whole_number
from impasto.studio.pages.data_views import listed_options
from impasto.studio.pages.shown_dataset import Dataset
from impasto.studio.resolutions import USUAL, bucket_options

OFFERED = (64, 128, 256, 384, 512, 640, 768, 1024)
"""Resolutions that the page of an image offers, in addition to that of its dataset."""

_LARGEST = 16_384


def known_options(dataset: Dataset) -> dict[str, str]:
    """Return the options of `impasto dataset list` for a dataset, as texts of form fields.

    They are those that its list was made with, or else those of a run or of the models.
    """
    return listed_options(dataset) or options_said(dataset)


def options_said(dataset: Dataset) -> dict[str, str]:
    """Return the bucket options of a run that uses the dataset, or of the models, as texts."""
    found = bucket_options(dataset.studio.folders, dataset.path)
    return {name: str(value) for name, value in found.items()}


def resolution_of(known: Mapping[str, str]) -> int:
    """Return the resolution in pixels that is used if none was chosen."""
    return whole_number(known.get("resolution", ""), _LARGEST, 1) or USUAL


def bucket_rules(known: Mapping[str, str], resolution: int) -> dict[str, Any]:
    """Return the bucket settings for a resolution, under the names of `BucketRules`.

    At the dataset's own resolution they are those of its list; at another one, those that
    `impasto new` would set.
    """
    if resolution != resolution_of(known):
        low, high, step = bucket_sides(resolution)
        return {"min_side": low, "max_side": high, "step": step}
    names = ("min_side", "max_side", "step")
    numbers = {name: whole_number(known.get(name, ""), _LARGEST, 1) for name in names}
    given: dict[str, Any] = {name: number for name, number in numbers.items() if number}
    return {**given, "no_upscale": known.get("no_upscale") == "1"}
