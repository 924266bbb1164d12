"""Numbers and previews of several runs, side by side; also of unfinished and damaged ones."""

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

_LARGEST = 1e30  # what is larger, or no number at all, has no place in a chart

Points = list[tuple[int, float]]


@dataclass(frozen=True)
class Trend:
    """A value over steps, in short.

    Attributes:
        last: The value that was measured last.
        last_step: The step of it.
        best: The least value.
        best_step: The first step that had it.
    """

    last: float
    last_step: int
    best: float
    best_step: int

    def as_json(self) -> dict[str, float]:
        """These numbers as plain values, for JSON."""
        return {
            "last": self.last,
            "last_step": self.last_step,
            "best": self.best,
            "best_step": self.best_step,
        }

    def text(self) -> str:
        """These numbers in a sentence for people."""
        return f"{self.best:.4f} at step {self.best_step:,}; {self.last:.4f} at last"


@dataclass(frozen=True)
class RunFigures:
    """What a run came to.

    Attributes:
        run: Its directory.
        title: Its name.
        state: How it stands, in one word.
        step: Optimizer steps that are done.
        total_steps: Those of the whole run; None where that is not known.
        loss: Its training loss, as it was measured; None where there is none.
        validation_loss: Its validation loss; None where there is none.
        images_per_s: Images per second, the median of all lines; None where there is none.
        memory_mib: The most memory in any line, in MiB; None where there is none.
        samples_seen: Images that were trained on; None where it is not known.
        model: The trained model; None before the end.
        config: The text of its settings; empty where they cannot be read.
        faults: What of the run could not be read.
        curves: Losses and speeds over steps, by the names that metrics have.
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
        """These figures as JSON has them: plain values, None for what is not known; no curves."""
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
        """What is known of these figures in words, by what each number is."""
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
    """What a run came to, as far as its files tell; reads all of its metrics.

    Raises:
        RunError: It is no run directory at all.
    """
    faults: list[str] = []
    try:
        config = read_text(run.config_file, "replace")
    except OSError as error:
        if not presence.exists(run.status_file) and not presence.exists(run.metrics_file):
            RunDirectory.open(run.path)  # says what is wrong
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
    """The step nearest to a wanted one, the earlier of two; None of none."""
    return min(steps, key=lambda step: (abs(step - wanted), step), default=None)


def _curves(run: RunDirectory) -> tuple[dict[str, Points], int | None]:
    """Losses, speeds and memory over steps, and the images seen."""
    found: dict[str, Points] = {}
    seen = None
    try:
        for record in run.read_metrics():
            seen = record.get("samples_seen", seen)
            for name in ("loss", "validation_loss", "lr", "images_per_s", "memory_mib"):
                value = record.get(name)
                if value is not None and _is_plottable(value):
                    found.setdefault(name, []).append((record["step"], value))
    except OSError:  # removed while it was read
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
