"""What the validation losses of a run say: where it was best, and whether it is over-fitting."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impasto.errors import RunError
from impasto.progress import counted
from impasto.runs.directory import RunDirectory
from impasto.runs.lines import read_lines

RISEN = 1.02
"""How many times its lowest value a validation loss has to be before it counts as risen: it is
measured at fixed noise, so it varies little by chance."""

NOTHING_HELD_OUT = (
    "Nothing can be said before two validations; validation.split holds images out for them."
)
NO_CHECKPOINT = (
    "No model was kept of that step; with saving.best_model = true the best one always is."
)
"""What is said to people where there is no `Learning`, and where there is no `kept_best`."""

_LARGEST = 1e30
_STEP_ENDING = re.compile(r"-step(\d{8})(-ema)?", re.ASCII)
_EPOCH_ENDING = re.compile(r"-(\d{6})(-ema)?", re.ASCII)

Points = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Learning:
    """The course of the validation loss.

    Attributes:
        first: The step and the loss of the first validation.
        best: Those of the lowest one.
        last: Those of the last one.
    """

    first: tuple[int, float]
    best: tuple[int, float]
    last: tuple[int, float]

    @property
    def is_overfitting(self) -> bool:
        """Whether the loss has risen since it was lowest."""
        return self.last[1] > RISEN * self.best[1]

    def sentence(self) -> str:
        """What it comes to, for people."""
        step, loss = self.best
        if self.is_overfitting:
            return (
                f"The validation loss was lowest, {loss:.4f}, after {counted(step, 'steps')} and "
                f"has risen since: the model is over-fitting. Train for fewer steps or with a "
                f"lower learning rate."
            )
        if self.best == self.first:
            return (
                f"The validation loss, {self.last[1]:.4f}, is not below that of the base model, "
                f"{loss:.4f}: nothing that helps with the held-out images was learnt yet."
            )
        if self.best == self.last:
            return (
                f"The validation loss is at its lowest, {loss:.4f}, down from "
                f"{self.first[1]:.4f}: no sign of over-fitting."
            )
        return (
            f"The validation loss was lowest, {loss:.4f}, after {counted(step, 'steps')} and has "
            f"hardly changed since: no sign of over-fitting."
        )


def validation_points(metrics: Iterable[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """The steps and losses of the validations among lines of metrics; those that are numbers."""
    found = ((m.get("step"), m.get("validation_loss")) for m in metrics)
    return [
        (step, float(loss))
        for step, loss in found
        if isinstance(step, int)
        and isinstance(loss, (int, float))
        and math.isfinite(loss)
        and abs(loss) < _LARGEST
    ]


def read_learning(run: RunDirectory) -> Learning | None:
    """The course of a run's validation loss, by its metrics."""
    lines = read_lines(run.metrics_file, holding=b'"validation_loss"')
    return learning_of(validation_points(line for _, line in lines))


def learning_of(validation: Points) -> Learning | None:
    """The course of a validation loss; None of fewer than two validations."""
    if len(validation) < 2:
        return None
    return Learning(validation[0], min(validation, key=lambda point: point[1]), validation[-1])


@dataclass(frozen=True)
class Checkpoint:
    """A model that a run has exported.

    Attributes:
        path: The file, or the Diffusers folder.
        step: The step it is of; None of one that replaces itself whenever the loss is lower.
    """

    path: Path
    step: int | None


def checkpoints_of(run: RunDirectory) -> list[Checkpoint]:
    """The models that a run has exported and that are still there, in the order of their steps."""
    try:
        written = run.read_json("models.json").get("written", [])
    except RunError:
        return []
    status = run.status()
    found = (_checkpoint(run.at(record), status) for record in written)
    there = (checkpoint for checkpoint in found if checkpoint.path.exists())
    return sorted(there, key=lambda c: (c.step is None, c.step or 0, c.path))


def nearest(checkpoints: Iterable[Checkpoint], step: int) -> Checkpoint | None:
    """The best model by the validation loss at `step`: the one kept as best, or the nearest."""
    kept = list(checkpoints)
    best = [checkpoint for checkpoint in kept if checkpoint.step is None]
    numbered = [checkpoint for checkpoint in kept if checkpoint.step is not None]
    return next(iter(best or sorted(numbered, key=lambda c: abs((c.step or 0) - step))), None)


def kept_best(run: RunDirectory, learning: Learning) -> tuple[Path, int] | None:
    """The best model by the validation loss that a run has kept, and the step it is of."""
    best = nearest(checkpoints_of(run), learning.best[0])
    if best is None:
        return None
    return best.path, learning.best[0] if best.step is None else best.step


def _checkpoint(path: Path, status: Mapping[str, Any]) -> Checkpoint:
    """What the name of a model says of its step; without an ending it is that of the end."""
    if found := _STEP_ENDING.search(path.name):
        return Checkpoint(path, int(found[1]))
    if found := _EPOCH_ENDING.search(path.name):
        return Checkpoint(path, int(found[1]) * int(status.get("updates_per_epoch", 1)))
    if re.search(r"-best(-ema)?(\.|$)", path.name):
        return Checkpoint(path, None)
    return Checkpoint(path, int(status.get("total_steps", 0)))
