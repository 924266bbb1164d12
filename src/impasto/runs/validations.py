"""The validations of a run, from its metrics; lines of earlier versions have fewer values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from impasto.parsing import parse_toml, read_text
from impasto.runs.directory import RunDirectory

MOST_VALUES = 256
"""Maximum number of values per validation in a line of metrics. With more images, each value is the
mean of several from all over the list: that hardly reduces certainty, and keeps a line short."""

_LARGEST = 1e30


class Validation(NamedTuple):
    """The result of a validation.

    Attributes:
        step: Completed optimizer steps; 0 is the base model.
        loss: The validation loss.
        images: Independent values with that mean, of one held-out image or more each; empty in runs
            of earlier versions.
        standard_error: Standard error of the loss, over images; None if unknown.
        training: The loss of a sample of the training images; None if it was not measured.
    """

    step: int
    loss: float
    images: tuple[float, ...] = ()
    standard_error: float | None = None
    training: float | None = None


def validations_of(metrics: Iterable[Mapping[str, Any]]) -> list[Validation]:
    """Return the validations in lines of metrics, in the order of their steps, one per step.

    Losses that are not finite are left out. If a step was measured again, the later value is used.
    """
    found: dict[int, Validation] = {}
    for line in metrics:
        step, loss = line.get("step"), _number(line.get("validation_loss"))
        if isinstance(step, int) and not isinstance(step, bool) and loss is not None:
            error, training = line.get("validation_se"), line.get("training_sample_loss")
            values = _numbers(line.get("validation_images"))
            found[step] = Validation(step, loss, values, _number(error), _number(training))
    return [found[step] for step in sorted(found)]


def validations_to_come(run: RunDirectory, step: int) -> int | None:
    """Return how many validations a run plans after a step; None if its settings do not tell."""
    status = run.status()
    total: int | None = status.get("total_steps")
    if run.state().state == "finished" or (total is not None and step >= total):
        return 0
    try:
        section = parse_toml(read_text(run.config_file, "replace")).get("validation")
    except (ValueError, OSError):
        return None
    every = section.get("every_steps") if isinstance(section, Mapping) else None
    if total is None or not isinstance(every, int) or every < 1:
        return None
    return math.ceil(total / every) - step // every


def ends_in_no_number(metrics: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether the last validation found a loss that is NaN or infinite."""
    last: Any = 0.0
    for line in metrics:
        if "validation_loss" in line:
            last = line["validation_loss"]
    return isinstance(last, float) and not math.isfinite(last)


def _numbers(values: Any) -> tuple[float, ...]:
    """Return values as floats; empty if any of them is not a finite number."""
    if not isinstance(values, list):
        return ()
    numbers = [_number(value) for value in values]
    known = tuple(number for number in numbers if number is not None)
    return known if len(known) == len(values) else ()


def _number(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) and abs(value) < _LARGEST else None
