"""The validation loss of some of the held-out images: of each tag, dataset and subset.

Which images have a tag is known before training and stays so. Rows go into the line of metrics of
a validation; nothing is claimed of them: of many groups some are low by chance.
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
"""Groups of one kind that are told, those with most images: a line of metrics stays short."""


@dataclass(frozen=True)
class ImageGroup:
    """Some held-out images whose loss is told by itself.

    Attributes:
        by: What they have in common: `tag`, `dataset` or `subset`.
        name: Which tag, dataset or subset.
        indices: Their indices among the held-out images.
    """

    by: str
    name: str
    indices: tuple[int, ...]


def group_images(
    records: Sequence[ImageRecord], alike: Sequence[int], kinds: Iterable[str], least: int
) -> list[ImageGroup]:
    """The groups of held-out images that are large enough, those with most images first.

    Args:
        records: The held-out images.
        alike: Of each the number of its unit: copies of one another are one.
        kinds: Of `NAMES`, in the order in which they are told.
        least: Units that a group has at least.
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
    """What stands between the commas of a caption; a caption without one is a tag itself."""
    return [tag for piece in record.fixed_caption.split(",") if (tag := " ".join(piece.split()))]


def _dataset(record: ImageRecord) -> list[str]:
    return [f"dataset {record.subset.dataset + 1}"]


def _subset(record: ImageRecord) -> list[str]:
    subset = record.subset
    folder = path_basename(printable(str(subset.root))) or "subset"
    return [f"{folder} ({subset.dataset + 1}.{subset.number + 1})"]


NAMES: Mapping[str, Any] = {"tag": _tags, "dataset": _dataset, "subset": _subset}
"""Kind of group -> the names of the groups that an image is in."""


def group_rows(
    groups: Sequence[ImageGroup],
    losses: Sequence[float],
    alike: Sequence[int],
    base: Sequence[float] | None,
) -> list[dict[str, Any]]:
    """The rows of a line of metrics, one for each group.

    Standard errors are over images, copies counted once, as of the whole (`image_units.py`).

    Args:
        groups: The groups.
        losses: Of all held-out images.
        alike: Of each the number of its unit.
        base: The losses of the base model at the same draws; None where they are not known.
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
    """Keep the base model's losses, which a resumed run compares with."""
    files.write_json(run.base_losses_file, {"losses": list(losses)})


def read_base_losses(run: RunDirectory, images: int) -> list[float] | None:
    """The base model's losses on so many held-out images; None where they are not known."""
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
