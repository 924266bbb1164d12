"""The validation loss of groups of held-out images: by tag, dataset and subset.

The groups are formed before training and do not change. Their losses are written to the metrics
without any conclusion: among many groups, some are low by chance.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from impasto import files
from impasto.data.records import ImageRecord
from impasto.parsing import printable, read_object
from impasto.publishing import path_basename
from impasto.runs import RunDirectory
from impasto.runs.evidence import standard_error
from impasto.training.monitoring.image_units import independent_values, mean

MOST_GROUPS = 40
"""Limit of groups of one kind, the largest first, so that lines of metrics stay short."""


@dataclass(frozen=True)
class ImageGroup:
    """A group of held-out images whose loss is reported separately.

    Attributes:
        by: The kind of group: `tag`, `dataset` or `subset`.
        name: The name of the tag, dataset or subset.
        indices: The indices of its images among the held-out images.
    """

    by: str
    name: str
    indices: tuple[int, ...]


def group_images(
    records: Sequence[ImageRecord], alike: Sequence[int], kinds: Iterable[str], least: int
) -> list[ImageGroup]:
    """Return the groups of held-out images that are large enough, per kind the largest first.

    Args:
        records: The held-out images.
        alike: The unit number of each image; copies of an image share one.
        kinds: Keys of `NAMES`, in the order of the result.
        least: Minimum number of units in a group.
    """
    found = []
    for kind in dict.fromkeys(kinds):
        indices: dict[str, list[int]] = {}
        for index, record in enumerate(records):
            for name in dict.fromkeys(NAMES[kind](record)):
                indices.setdefault(name, []).append(index)
        groups = [
            ImageGroup(kind, name, tuple(own))
            for name, own in indices.items()
            if len({alike[index] for index in own}) >= least
        ]
        found += sorted(groups, key=lambda group: (-len(group.indices), group.name))[:MOST_GROUPS]
    return found


def _tags(record: ImageRecord) -> list[str]:
    """Return the comma-separated tags of a caption; a caption without commas is a single tag."""
    return [tag for piece in record.fixed_caption.split(",") if (tag := " ".join(piece.split()))]


def _dataset(record: ImageRecord) -> list[str]:
    return [f"dataset {record.subset.dataset + 1}"]


def _subset(record: ImageRecord) -> list[str]:
    subset = record.subset
    folder = path_basename(printable(str(subset.root))) or "subset"
    return [f"{folder} ({subset.dataset + 1}.{subset.number + 1})"]


NAMES: Mapping[str, Any] = {"tag": _tags, "dataset": _dataset, "subset": _subset}
"""Kind of group -> function that returns the names of the groups that an image is in."""


def group_rows(
    groups: Sequence[ImageGroup],
    losses: Sequence[float],
    alike: Sequence[int],
    base: Sequence[float] | None,
) -> list[dict[str, Any]]:
    """Return the rows for a line of metrics, one per group.

    Standard errors count copies of an image once, as those of all images do (`image_units.py`).

    Args:
        groups: The groups.
        losses: The losses of all held-out images.
        alike: The unit number of each image.
        base: The base model's losses of the same images and draws; None if unknown.
    """
    return [_row(group, losses, alike, base) for group in groups]


def _row(
    group: ImageGroup,
    losses: Sequence[float],
    alike: Sequence[int],
    base: Sequence[float] | None,
) -> dict[str, Any]:
    units = [alike[index] for index in group.indices]
    own = [losses[index] for index in group.indices]
    row: dict[str, Any] = {
        "by": group.by, "name": group.name, "images": len(own), "loss": mean(own),
        "se": standard_error(independent_values(own, units)),
    }  # fmt: skip
    if base is not None:
        change = [losses[index] - base[index] for index in group.indices]
        row["change"] = mean(change)
        row["change_se"] = standard_error(independent_values(change, units))
    return {key: value for key, value in row.items() if value is not None}


def write_base_losses(run: RunDirectory, losses: Sequence[float]) -> None:
    """Write the base model's losses to the run directory, for comparison after a resume."""
    files.write_json(run.base_losses_file, {"losses": list(losses)})


def read_base_losses(run: RunDirectory, images: int) -> list[float] | None:
    """Return the base model's losses of the held-out images; None if the file does not fit.

    Args:
        run: The run directory.
        images: The number of held-out images.
    """
    content = read_object(run.base_losses_file) or {}
    losses = content.get("losses")
    if not isinstance(losses, list) or len(losses) != images:
        return None
    known = [
        float(loss)
        for loss in losses
        if isinstance(loss, (int, float)) and not isinstance(loss, bool) and math.isfinite(loss)
    ]
    return known if len(known) == images else None
