"""The validation loss by tag, dataset and subset, from the metrics of a run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from impasto.parsing import printable
from impasto.progress import counted

_MOST = 200
_LARGEST = 1e30
_LONGEST = 80  # a caption without commas is a tag too
_KINDS = ("tag", "dataset", "subset")


@dataclass(frozen=True)
class GroupLoss:
    """The loss of a group of held-out images at a validation.

    Attributes:
        by: The kind of group: `tag`, `dataset` or `subset`.
        name: The name of the group.
        images: The number of images.
        loss: Their mean loss.
        error: Its standard error over images; None if unknown.
        change: The paired difference from the base model; None if unknown.
        change_error: Its standard error.
    """

    by: str
    name: str
    images: int
    loss: float
    error: float | None = None
    change: float | None = None
    change_error: float | None = None

    @property
    def loss_text(self) -> str:
        """The loss with its standard error."""
        return f"{self.loss:.4f}{_plus_minus(self.error)}"

    @property
    def change_text(self) -> str:
        """The change from the base model with its standard error; empty if unknown."""
        return "" if self.change is None else f"{self.change:+.4f}{_plus_minus(self.change_error)}"

    @property
    def title(self) -> str:
        """The label before the loss in a table."""
        return f"tag {self.name}" if self.by == "tag" else self.name

    @property
    def text(self) -> str:
        """The loss, its change and the number of images in a line."""
        change = f", {self.change_text} from the base model" if self.change_text else ""
        return f"{self.loss_text}{change}, of {counted(self.images, 'images')}"

    def as_values(self) -> dict[str, Any]:
        """Return the values as in `impasto show --json`, under the names of the metrics."""
        return {
            "by": self.by, "name": self.name, "images": self.images, "loss": self.loss,
            "se": self.error, "change": self.change, "change_se": self.change_error,
        }  # fmt: skip


@dataclass(frozen=True)
class GroupLosses:
    """The losses of all groups at the last validation that has any.

    Attributes:
        step: The optimizer step of the validation.
        groups: The groups, sorted by kind.
    """

    step: int
    groups: tuple[GroupLoss, ...]


def last_groups(metrics: Iterable[Mapping[str, Any]]) -> GroupLosses | None:
    """Return the group losses of the last line of metrics that has any; None if there is none.

    Invalid rows are skipped.
    """
    found: GroupLosses | None = None
    for line in metrics:
        rows, step = line.get("validation_by"), line.get("step")
        if isinstance(rows, list) and isinstance(step, int) and not isinstance(step, bool):
            known = [group for row in rows[:_MOST] if (group := _group_of(row)) is not None]
            found = GroupLosses(step, tuple(known)) if known else found
    return found


def _group_of(row: Any) -> GroupLoss | None:
    if not isinstance(row, Mapping):
        return None
    by, name, images = row.get("by"), row.get("name"), row.get("images")
    loss = _number(row.get("loss"))
    if by not in _KINDS or not isinstance(name, str) or loss is None:
        return None
    if not isinstance(images, int) or isinstance(images, bool) or images < 1:
        return None
    others = (_number(row.get(key)) for key in ("se", "change", "change_se"))
    return GroupLoss(by, printable(name)[:_LONGEST], images, loss, *others)


def _number(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) and abs(value) < _LARGEST else None


def _plus_minus(error: float | None) -> str:
    return "" if error is None else f" ± {error:.4f}"
