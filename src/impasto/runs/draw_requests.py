"""What is asked of a draw worker: one prompt with its settings, and up to two axes that vary it.

`draw_reading.py` makes them of JSON and of the studio's form. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import PurePath
from typing import Any

MOST_IMAGES = 100
"""Images of one request, at most."""

COLUMNS = 4
"""Images in a row where no axis says how many."""

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
"""What an axis may vary, and how people call it."""


@dataclass(frozen=True)
class ImageSettings:
    """All that decides one image.

    Attributes:
        model: The path of the model.
        prompt: What it should show.
        negative: What it should not show.
        seed: Seed of the initial noise.
        width: Pixels, a multiple of 8; None means what the model was trained at.
        height: As `width`.
        steps: Sampler steps.
        guidance: Strength of the words; 1 means none.
        sampler: A key of `SAMPLERS`.
        strength: Of all hypernetworks; None means each its own.
        guidance_rescale: How much of what guidance adds to the contrast is taken back, from 0 to 1;
            None means 0.
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
    """What varies from row to row, or from column to column.

    Attributes:
        kind: A key of `AXES`.
        values: As text. Of `words`, the first is in the prompt, and each takes its place.
    """

    kind: str
    values: tuple[str, ...]

    @property
    def labels(self) -> list[str]:
        """What the rows or columns are called."""
        if self.kind == "model":
            return _told_apart(self.values)
        if self.kind == "words":
            return list(self.values)
        return [f"{AXES[self.kind]} {value}" for value in self.values]

    def settings(self, base: ImageSettings) -> list[ImageSettings]:
        """The settings at each of the values."""
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
    """The ends of paths, as short as still tells them apart: exports of runs share their names."""
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
        row: From 0 on.
        column: From 0 on.
        settings: What it is drawn with.
    """

    row: int
    column: int
    settings: ImageSettings


@dataclass(frozen=True)
class DrawRequest:
    """A prompt with its settings, and what varies.

    Attributes:
        settings: What all images share, as far as no axis says otherwise.
        count: Images, each with the next seed; 1 where there is an axis.
        clip_skip: CLIP's layer from the end; None means what the model's file says.
        hypernetworks: Paths with their strengths, in order.
        x: What varies from column to column.
        y: What varies from row to row.
        random_seed: Whether whoever asked chose no seed; for the form.
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
        """How many images there will be."""
        if self.x is None and self.y is None:
            return self.count
        return (len(self.x.values) if self.x else 1) * (len(self.y.values) if self.y else 1)

    def cells(self) -> list[Cell]:
        """The images, row by row."""
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
        """The request as plain values, which `draw_reading.read_request` reads."""
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
