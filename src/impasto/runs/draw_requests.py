"""Requests to a draw worker: one prompt with its settings, and up to two axes that vary it.

`draw_reading.py` parses them from JSON and from the studio's form. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import PurePath
from typing import Any

MOST_IMAGES = 100
"""Maximum number of images per request."""

COLUMNS = 4
"""Images per row if no axis determines it."""

AXES = {
    "seed": "Seed",
    "guidance": "Guidance",
    "guidance_rescale": "Guidance rescale",
    "steps": "Steps",
    "sampler": "Sampler",
    "words": "Prompt words",
    "strength": "Hypernetwork strength",
    "model": "Model",
}
"""Kind of axis -> its label."""


@dataclass(frozen=True)
class ImageSettings:
    """All settings that determine one image.

    Attributes:
        model: The path of the model.
        prompt: The prompt.
        negative: The negative prompt.
        seed: Seed of the initial noise.
        width: Pixels, a multiple of 8; None means the model's training resolution.
        height: As `width`.
        steps: Sampler steps.
        guidance: Guidance scale; 1 means no guidance.
        sampler: A key of `SAMPLERS`.
        strength: Strength of all hypernetworks; None means each its own.
        guidance_rescale: How much of the contrast that guidance adds is removed, from 0 to 1; None
            means 0.
    """

    model: str
    prompt: str
    negative: str = ""
    seed: int = 1
    width: int | None = None
    height: int | None = None
    steps: int = 20
    guidance: float = 7.0
    sampler: str = "ddim"
    strength: float | None = None
    guidance_rescale: float | None = None


@dataclass(frozen=True)
class Axis:
    """A setting that varies from row to row, or from column to column.

    Attributes:
        kind: A key of `AXES`.
        values: The values as text. For `words`, the prompt contains the first, which each value
            replaces.
    """

    kind: str
    values: tuple[str, ...]

    @property
    def labels(self) -> list[str]:
        """The labels of the rows or columns."""
        if self.kind == "model":
            return _told_apart(self.values)
        if self.kind == "words":
            return list(self.values)
        return [f"{AXES[self.kind]} {value}" for value in self.values]

    def settings(self, base: ImageSettings) -> list[ImageSettings]:
        """Return the settings at each of the values."""
        if self.kind == "words":
            first = self.values[0]
            return [
                replace(
                    base,
                    prompt=base.prompt.replace(first, value),
                    negative=base.negative.replace(first, value),
                )
                for value in self.values
            ]
        read: Callable[[str], Any] = _READ.get(self.kind, str)
        return [replace(base, **{self.kind: read(value)}) for value in self.values]


def _told_apart(paths: Sequence[str]) -> list[str]:
    """Return the shortest distinct ends of paths, as exports of several runs may share a name."""
    all_names = [PurePath(path).parts for path in paths]
    for length in range(1, max(map(len, all_names)) + 1):
        names = ["/".join(names_of[-length:]) for names_of in all_names]
        if len(set(names)) == len(set(paths)):
            return names
    return list(paths)


_READ: dict[str, Callable[[str], Any]] = {
    "seed": int, "steps": int, "guidance": float, "strength": float,
    "guidance_rescale": float,
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One image of a request.

    Attributes:
        row: The row, from 0.
        column: The column, from 0.
        settings: The settings of the image.
    """

    row: int
    column: int
    settings: ImageSettings


@dataclass(frozen=True)
class DrawRequest:
    """A prompt with its settings, and the axes that vary it.

    Attributes:
        settings: The settings of all images, except those that an axis varies.
        count: Number of images, each with the next seed; 1 if there is an axis.
        clip_skip: CLIP's layer from the end; None means the one in the model's file.
        hypernetworks: Paths with their strengths, in order.
        x: The axis of the columns.
        y: The axis of the rows.
        random_seed: Whether the user requested a random seed; for the form.
    """

    settings: ImageSettings
    count: int = 1
    clip_skip: int | None = None
    hypernetworks: tuple[tuple[str, float], ...] = ()
    x: Axis | None = None
    y: Axis | None = None
    random_seed: bool = False

    @property
    def size(self) -> int:
        """The number of images."""
        if self.x is None and self.y is None:
            return self.count
        return (len(self.x.values) if self.x else 1) * (len(self.y.values) if self.y else 1)

    def cells(self) -> list[Cell]:
        """Return the images, row by row."""
        if self.x is None and self.y is None:
            return [
                Cell(n // COLUMNS, n % COLUMNS, replace(self.settings, seed=self.settings.seed + n))
                for n in range(self.count)
            ]
        rows = self.y.settings(self.settings) if self.y else [self.settings]
        columns = [self.x.settings(row) if self.x else [row] for row in rows]
        return [
            Cell(row, column, settings)
            for row, line in enumerate(columns)
            for column, settings in enumerate(line)
        ]

    def as_json(self) -> dict[str, Any]:
        """Return the request as plain values, which `draw_reading.read_request` reads."""
        values = asdict(self.settings)
        del values["strength"]
        axes = {"x": self.x, "y": self.y}
        return {
            **values,
            "count": self.count,
            "clip_skip": self.clip_skip,
            "hypernetworks": [[path, strength] for path, strength in self.hypernetworks],
            **{
                name: axis and {"kind": axis.kind, "values": list(axis.values)}
                for name, axis in axes.items()
            },
            "random_seed": self.random_seed,
        }
