"""Figures of runs for comparison, including unfinished and damaged runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from impasto import presence
from impasto.errors import RunError
from impasto.parsing import printable, read_text
from impasto.runs import RunDirectory

_LARGEST = 1e30  # larger values, infinities and NaN cannot be drawn in a chart

Points = list[tuple[int, float]]


@dataclass(frozen=True)
class Trend:
    """A summary of a value over steps.

    Attributes:
        last: The last value.
        last_step: The step of the last value.
        best: The lowest value.
        best_step: The first step with the lowest value.
    """

    last: float
    last_step: int
    best: float
    best_step: int

    def as_json(self) -> dict[str, float]:
        """Return the summary as plain values for JSON."""
        return {
            "last": self.last,
            "last_step": self.last_step,
            "best": self.best,
            "best_step": self.best_step,
        }

    def text(self) -> str:
        """Return the summary as a text for users."""
        return f"{self.best:.4f} at step {self.best_step:,}; last {self.last:.4f}"


@dataclass(frozen=True)
class RunFigures:
    """The state, losses, speed and memory of a run.

    Attributes:
        run: Its directory.
        title: Its name.
        state: Its state, in one word.
        step: Number of completed optimizer steps.
        total_steps: Number of steps of the whole run; None if unknown.
        loss: Its training loss, unsmoothed; None if not measured.
        validation_loss: Its validation loss; None if not measured.
        images_per_s: Images per second, the median over all lines of metrics; None if not measured.
        memory_mib: The largest memory use in any line of metrics, in MiB; None if not measured.
        samples_seen: Number of images trained on, counting repeats; None if unknown.
        model: The exported model; None before the end.
        config: The text of its settings; empty if they cannot be read.
        faults: Descriptions of the files that could not be read.
        curves: Losses, learning rate, speed and memory over steps, by the names of metrics.
    """

    run: RunDirectory
    title: str
    state: str
    step: int
    total_steps: int | None
    loss: Trend | None
    validation_loss: Trend | None
    images_per_s: float | None
    memory_mib: float | None
    samples_seen: int | None
    model: Path | None
    config: str
    faults: tuple[str, ...] = ()
    curves: Mapping[str, Points] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the figures as plain values for JSON, None if unknown, without the curves."""
        return {
            "path": printable(self.run.address),
            "state": self.state,
            "step": self.step,
            "total_steps": self.total_steps,
            "loss": self.loss and self.loss.as_json(),
            "validation_loss": self.validation_loss and self.validation_loss.as_json(),
            "images_per_s": self.images_per_s,
            "memory_mib": self.memory_mib,
            "samples_seen": self.samples_seen,
            "model": None if self.model is None else printable(str(self.model)),
            "faults": list(self.faults),
        }

    def rows(self) -> dict[str, str]:
        """Return the known figures as texts, by their names."""
        of = "" if self.total_steps is None else f" of {self.total_steps:,}"
        found = {
            "state": self.state,
            "steps": f"{self.step:,}{of}",
            "images seen": "" if self.samples_seen is None else f"{self.samples_seen:,}",
            "training loss": self.loss.text() if self.loss else "",
            "validation loss": self.validation_loss.text() if self.validation_loss else "",
            "images per second": "" if self.images_per_s is None else f"{self.images_per_s:.3g}",
            "memory": "" if self.memory_mib is None else f"{self.memory_mib:,.0f} MiB",
            "model": "" if self.model is None else printable(self.model.name),
            "could not be read": "; ".join(self.faults),
        }
        return {name: text for name, text in found.items() if text}


def figures_of(run: RunDirectory) -> RunFigures:
    """Read the figures of a run from its files, including all of its metrics.

    Raises:
        RunError: The path is not a run directory.
    """
    faults: list[str] = []
    try:
        config = read_text(run.config_file, "replace")
    except OSError as error:
        if not presence.exists(run.status_file) and not presence.exists(run.metrics_file):
            RunDirectory.open(run.path)  # raises an error that says what is wrong
            raise
        config = ""
        faults.append(f"config.toml: {error.strerror or error}")
    curves, seen = _curves(run)
    try:
        run.read_json(run.status_file.name)
    except RunError as error:
        faults.append(str(error))
    state = run.state()
    measured = [points[-1][0] for points in curves.values()]
    memory = [value for _, value in curves.get("memory_mib", ())]
    speeds = [value for _, value in curves.get("images_per_s", ())]
    return RunFigures(
        run,
        printable(run.path.resolve().name),
        state.state,
        max([state.step, *measured]),
        state.total_steps,
        _trend(curves.get("loss", [])),
        _trend(curves.get("validation_loss", [])),
        statistics.median(speeds) if speeds else None,
        max(memory, default=None),
        seen,
        run.exported_model(),
        config,
        tuple(faults),
        curves,
    )


def nearest(steps: Sequence[int], wanted: int) -> int | None:
    """Return the step nearest to a wanted one, of two equally near the earlier; None if empty."""
    return min(steps, key=lambda step: (abs(step - wanted), step), default=None)


def _curves(run: RunDirectory) -> tuple[dict[str, Points], int | None]:
    """Read losses, learning rate, speed and memory over steps, and the number of images seen."""
    found: dict[str, Points] = {}
    seen = None
    try:
        for record in run.read_metrics():
            seen = record.get("samples_seen", seen)
            for name in ("loss", "validation_loss", "lr", "images_per_s", "memory_mib"):
                value = record.get(name)
                if value is not None and _is_plottable(value):
                    found.setdefault(name, []).append((record["step"], value))
    except OSError:  # removed while being read
        return found, seen
    return found, seen


def _is_plottable(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value) and abs(value) < _LARGEST


def _trend(points: Points) -> Trend | None:
    if not points:
        return None
    best_step, best = min(points, key=lambda point: point[1])
    return Trend(points[-1][1], points[-1][0], best, best_step)
