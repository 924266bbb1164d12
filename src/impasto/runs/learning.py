"""What the validation losses of a run show, and how certain that is: best step, over-fitting, harm.

The terminal, `impasto show`, the report, the studio and model cards all use this module.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any, Literal

from impasto.errors import RunError
from impasto.parsing import parse_toml, read_text
from impasto.runs.directory import RunDirectory
from impasto.runs.evidence import Difference, chance_of_each, difference
from impasto.runs.learning_text import sentence_of
from impasto.runs.lines import read_lines
from impasto.runs.validations import (
    Validation,
    ends_in_no_number,
    validations_of,
    validations_to_come,
)

RISEN = 1.02
"""Factor over its lowest value from which a validation loss counts as risen in runs of earlier
versions, which recorded no losses of images: nothing more certain can be said about them."""

NOTHING_HELD_OUT = (
    "Nothing can be said before two validations; validation.split holds images out for them."
)
NO_CHECKPOINT = (
    "No model was kept of that step; with saving.best_model = true the best one always is."
)
"""Messages for runs without a `Learning`, and for those without a model near the best step."""

_ENDING = re.compile(
    r"(?:-step(?P<step>\d{8})|-(?P<epoch>\d{6})|(?P<best>-best))?(?P<average>-ema)?"
    r"(?:-\d{1,5})?(?:\.[a-z]+)?\Z",  # a number if another run had the name
    re.ASCII,
)

Verdict = Literal["better", "over-fitting", "worse", "unclear"]
"""The claim about the final model: better than the base model; worse than at an earlier step; worse
than the base model; or no claim, for lack of evidence."""


@dataclass(frozen=True)
class Learning:
    """The course of the validation loss, and what can be claimed about it.

    A claim compares two validations over the same images and draws (`evidence.py`). There are three
    kinds: that a step is better than the base model, that the end is worse than a step, and that
    the best step is better than others; each with as many steps as there are besides. They share
    the probability of error, so that all of them together have the confidence `CONFIDENCE`. A run
    is also evaluated while it trains: the probability is shared with the validations to come, or
    else each evaluation would have that confidence and all of them together far less.

    Attributes:
        validations: All validations, two or more, in the order of their steps.
        is_broken: Whether the very last loss was NaN or infinite.
        to_come: How many more validations the run is going to have; None if unknown, so that
            nothing can be claimed yet.
    """

    validations: Sequence[Validation]
    is_broken: bool = False
    to_come: int | None = 0

    @property
    def first(self) -> Validation:
        """The first validation: that of the base model."""
        return self.validations[0]

    @cached_property
    def best(self) -> Validation:
        """The validation with the lowest loss; of equal ones, the earliest."""
        return min(self.validations, key=lambda one: one.loss)

    @property
    def last(self) -> Validation:
        """The validation of the latest step."""
        return self.validations[-1]

    @cached_property
    def chance(self) -> float:
        """The probability of error allowed per comparison."""
        return chance_of_each(3 * (len(self.validations) + (self.to_come or 0) - 1))

    @cached_property
    def is_known(self) -> bool:
        """Whether losses of images were recorded, so that something can be claimed."""
        return (
            self.to_come is not None
            and all(len(one.images) == len(self.first.images) for one in self.validations)
            and len(self.first.images) >= 2
        )

    @property
    def verdict(self) -> Verdict:
        """The claim about the final model."""
        if self.is_broken or self._is_above(self.last, self.first):
            return "worse"
        if self._is_above(self.last, self.best):
            return "over-fitting"
        return "better" if self.is_last_better else "unclear"

    @property
    def is_overfitting(self) -> bool:
        """Whether the loss has risen since its lowest value."""
        return self._is_above(self.last, self.best)

    @property
    def mood(self) -> str:
        """The colour class of the verdict on pages: `good`, `bad`, or empty."""
        return {"better": "good", "unclear": ""}.get(self.verdict, "bad")

    @property
    def is_best_better(self) -> bool:
        """Whether the best step is better than the base model."""
        return self._is_above(self.first, self.best)

    @property
    def is_last_better(self) -> bool:
        """Whether the last step is better than the base model."""
        return self._is_above(self.first, self.last)

    @property
    def is_clear_on_these(self) -> bool:
        """Whether the end clearly differs from the base model on these images, even if few."""
        change = self.compared(self.last, self.first)
        return change is not None and change.is_clear_if_gaussian(self.chance)

    def as_good(self) -> list[int]:
        """Return the other steps that may be as good as the best one; all if nothing is known."""
        return [
            one.step
            for one in self.validations
            if one is not self.best and not self._is_above(one, self.best)
        ]

    def compared(self, one: Validation, other: Validation) -> Difference | None:
        """Return how much the loss of `one` is above that of `other`; None if unknown."""
        return difference(one.images, other.images) if self.is_known else None

    def _is_above(self, one: Validation, other: Validation) -> bool:
        """Return whether it can be claimed that `one` has a higher loss than `other`."""
        found = self.compared(one, other)
        if found is not None:
            return found.is_above(self.chance)
        return not self.first.images and one.loss > RISEN * other.loss

    def sentence(self) -> str:
        """Return what the validation loss shows, in a sentence from `learning_text.py`."""
        return sentence_of(self)


def validation_points(metrics: Iterable[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """Return the steps and losses of the validations in lines of metrics, if finite."""
    return [(one.step, one.loss) for one in validations_of(metrics)]


def read_learning(run: RunDirectory) -> Learning | None:
    """Return the course of a run's validation loss from its metrics, or None if there is none.

    There is none with fewer than two validations.
    """
    lines = read_lines(run.metrics_file, holding=b'"validation_loss"')
    return learning_in((line for _, line in lines), run)


def learning_in(
    metrics: Iterable[Mapping[str, Any]], run: RunDirectory | None = None
) -> Learning | None:
    """Return the course of the validation loss in lines of metrics; None before two validations.

    Args:
        metrics: The lines.
        run: Their run, which may continue; None if it has ended.
    """
    lines = [line for line in metrics if "validation_loss" in line]
    found = validations_of(lines)
    to_come = validations_to_come(run, found[-1].step) if run is not None and found else 0
    return learning_of(found, is_broken=ends_in_no_number(lines), to_come=to_come)


def learning_of(
    validations: Sequence[Validation], *, is_broken: bool = False, to_come: int | None = 0
) -> Learning | None:
    """Return the course of a validation loss; None for fewer than two validations."""
    return Learning(validations, is_broken, to_come) if len(validations) >= 2 else None


@dataclass(frozen=True)
class Checkpoint:
    """A model that a run has exported.

    Attributes:
        path: The file, or the Diffusers folder.
        step: Its step; None for a best model whose run did not record it.
        is_best: Whether it is the best model, which is replaced each time the loss is lower.
        is_average: Whether it is the running average that is kept beside a model.
    """

    path: Path
    step: int | None
    is_best: bool = False
    is_average: bool = False


def checkpoints_of(run: RunDirectory) -> list[Checkpoint]:
    """Return the models that a run has exported and that still exist, in the order of steps."""
    try:
        models = run.read_json("models.json")
    except RunError:
        return []
    best = models.get("best", {})
    # without a step it is unknown which model it is: it was being replaced at a kill, or is now
    unsure = {record for record, told in best.items() if "step" not in told}
    known = [record for record in models.get("written", []) if record not in unsure]
    if not known:
        return []
    names, status = _export_names(run), run.status()
    found = (_checkpoint(run.at(record), names, status, best.get(record)) for record in known)
    there = (checkpoint for checkpoint in found if run.has(checkpoint.path))
    return sorted(there, key=lambda c: (c.step is None, c.step or 0, c.path))


def nearest(checkpoints: Iterable[Checkpoint], step: int) -> Checkpoint | None:
    """Return the best model for the lowest loss, at `step`: the one kept as best, or the nearest.

    Of a model and its average beside it, the average is returned: it is the one that was measured.
    """
    kept = sorted(checkpoints, key=lambda c: not c.is_average)
    best = [checkpoint for checkpoint in kept if checkpoint.is_best]
    numbered = [checkpoint for checkpoint in kept if checkpoint.step is not None]
    return next(iter(best or sorted(numbered, key=lambda c: abs((c.step or 0) - step))), None)


def validation_of(run: RunDirectory, learning: Learning, model: Path) -> Validation | None:
    """Return the validation of an exported model; None if it was not itself measured.

    If a model and its average were written, the average was measured.
    """
    known = checkpoints_of(run)
    own = next((c for c in known if c.path.resolve() == model.resolve()), None)
    if own is None:
        return None
    if not own.is_average and any(c.is_average and c.step == own.step for c in known):
        return None
    step = learning.best.step if own.step is None else own.step
    return next((one for one in learning.validations if one.step == step), None)


def kept_best(run: RunDirectory, learning: Learning) -> tuple[Path, int] | None:
    """Return the best exported model by the validation loss, and its step.

    None also if the base model is the best: then no model of the run is.
    """
    if learning.best.step == 0:
        return None
    best = nearest(checkpoints_of(run), learning.best.step)
    if best is None:
        return None
    return best.path, learning.best.step if best.step is None else best.step


def why_no_best(learning: Learning) -> str:
    """Return a message for runs without a `kept_best`."""
    is_base = learning.best.step == 0
    return "None: the loss was lowest with the base model." if is_base else NO_CHECKPOINT


def _export_names(run: RunDirectory) -> set[str]:
    """Return the possible names of a run's models, without suffixes, by its settings or folder."""
    try:
        settings = parse_toml(read_text(run.config_file, "replace"))
    except (ValueError, OSError):
        settings = {}
    saving, folder = settings.get("saving"), settings.get("output_dir")
    if isinstance(saving, Mapping) and isinstance(saving.get("name"), str):
        return {saving["name"]}
    return {run.path.name, *([PurePath(folder).name] if isinstance(folder, str) else [])} - {""}


def _checkpoint(
    path: Path,
    names: Collection[str],
    status: Mapping[str, Any],
    best: Mapping[str, Any] | None,
) -> Checkpoint:
    """Return the checkpoint for a model from its record and file name; by default of the last step.

    Args:
        path: The model.
        names: Possible names before the suffix, which may themselves look like a suffix.
        status: The content of the run's status.
        best: The record of a best model, if it is one.
    """
    own = max((name for name in names if path.name.startswith(name)), key=len, default="")
    match = _ENDING.match(path.name, len(own)) if own else None
    match = match or _ENDING.search(path.name)  # it may have a former name of the run
    ending = match.groupdict() if match else {}
    is_average = bool(ending.get("average"))
    if best is not None or ending.get("best"):
        known = None if best is None else int(best["step"])
        return Checkpoint(path, known, is_best=True, is_average=is_average)
    if ending.get("step"):
        step = int(ending["step"])
    elif ending.get("epoch"):
        step = int(ending["epoch"]) * int(status.get("steps_per_epoch", 1))
    else:
        step = int(status.get("finished_step", status.get("total_steps", 0)))
    return Checkpoint(path, step, is_average=is_average)
