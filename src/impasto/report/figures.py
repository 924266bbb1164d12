"""The charts of a run's page, each drawn twice: wide and narrow.

The page shows the one that fits, and can open the wide one over the whole window, by CSS alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from markupsafe import Markup

from impasto.report.charts import Line, bucket_chart, line_chart, loss_chart
from impasto.report.svg import WIDTH
from impasto.runs.validations import Validation

NARROW = 440
"""The width of charts on phones, and of charts that stand side by side."""

_LARGEST = 1e30
_LEVELS = "loss_t"
_KINDS = ("first", "second", "third", "fourth")
_CURVES = 4  # maximum per chart; more colours cannot be distinguished

Metrics = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Figure:
    """A chart on a page.

    Attributes:
        id: Its HTML id, for links within the page.
        title: Its heading.
        wide: The drawing for wide windows.
        narrow: The drawing for narrow windows.
        is_small: Whether it shares a row with another figure.
        note: A sentence that explains it; may be empty.
    """

    id: str
    title: str
    wide: Markup
    narrow: Markup
    is_small: bool = True
    note: str = ""


def figures_of_run(metrics: Metrics, validations: Sequence[Validation]) -> list[Figure]:
    """Return the charts of a run for which it has measured values."""
    training = points_of(metrics, "loss")
    held_out = [(one.step, one.loss) for one in validations]
    errors: dict[float, float] = {
        one.step: one.standard_error for one in validations if one.standard_error is not None
    }
    found = [
        _figure(
            "loss", "Loss", lambda width: loss_chart(training, held_out, errors, width),
            is_small=False,
        ),
        _figure("gap", "Held-out and training images", _gap(validations, errors), note=(
            "Both are measured at the same distribution of noise levels. If only the loss of "
            "training images falls, the model is over-fitting."
        )),
        _figure("levels", "Loss by noise level", _curves("loss", _levels(metrics)), note=(
            "Means over the training steps; 0 is the lowest noise level."
        )),
        *_of_previews(metrics),
        _figure("lr", "Learning rate", _curves("learning rate", _rates(metrics))),
        _figure("norm", "Gradient norm", _curves(
            "norm before clipping", [("norm", points_of(metrics, "grad_norm"))]
        )),
    ]  # fmt: skip
    return [figure for figure in found if figure.wide]


def bucket_figure(buckets: Mapping[str, int]) -> Figure:
    """Return the chart of the number of images per bucket."""
    return _figure("buckets", "Buckets", lambda width: bucket_chart(buckets, width), is_small=False)


def points_of(metrics: Iterable[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    """Return the steps and values of a metric, without values that cannot be drawn."""
    return [(line["step"], line[name]) for line in metrics if is_plottable(line.get(name))]


def is_plottable(value: object) -> bool:
    """Return whether a value can be drawn: a finite number of moderate size."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value) and abs(value) < _LARGEST


def _figure(
    name: str, title: str, draw: Callable[[float], str], note: str = "", *, is_small: bool = True
) -> Figure:
    wide, narrow = Markup(draw(WIDTH)), Markup(draw(NARROW))
    return Figure(name, title, wide, narrow, is_small, note)


def _gap(validations: Sequence[Validation], errors: Mapping[float, float]) -> Callable[..., str]:
    """Return a function that draws the losses of held-out images and of sampled training images."""
    training = [(v.step, v.training) for v in validations if v.training is not None]
    if not training:
        return lambda _: ""
    held_out = [(v.step, v.loss) for v in validations]
    lines = [
        Line("second", "held out", held_out, is_marked=True, errors=errors),
        Line("first", "trained on", training, is_marked=True),
    ]
    return lambda width: line_chart("Gap", "loss", lines, width=width, height=260)


def _of_previews(metrics: Metrics) -> list[Figure]:
    """Return the charts of the distance of previews to real images; empty ones if not measured."""
    network = next((line["preview_features"] for line in reversed(metrics)
                    if isinstance(line.get("preview_features"), str)), "")  # fmt: skip
    return [
        _figure(
            key.replace("_", "-"), title, partial(_with_errors, metrics, f"preview_{key}", label),
            note=f"{note} By the features of {network.partition(' ')[0]}, with standard errors "
            f"if there are enough prompts.",
        )
        for key, title, label, note in (
            ("kernel_distance", "Kernel distance of previews to real images", "kernel distance",
             "Lower is nearer; it may be below 0."),
            ("similarity", "Similarity of previews to the image of the same caption",
             "similarity", "Higher is nearer."),
        )
    ]  # fmt: skip


def _with_errors(metrics: Metrics, name: str, label: str, width: float) -> str:
    points = points_of(metrics, name)
    if not points:
        return ""
    errors: dict[float, float] = dict(points_of(
        [line for line in metrics if is_plottable(line.get(name))], f"{name}_se"
    ))  # fmt: skip
    lines = [Line("first", label, points, is_marked=True, errors=errors)]
    return line_chart(label.capitalize(), label, lines, width=width, height=260)


def _curves(
    label: str, curves: Sequence[tuple[str, Sequence[tuple[int, float]]]]
) -> Callable[..., str]:
    known = [(name, points) for name, points in curves if points][:_CURVES]
    lines = [
        Line(kind, name, points, is_marked=len(points) < 3)
        for kind, (name, points) in zip(_KINDS, known, strict=False)
    ]
    return lambda width: line_chart(
        label.capitalize(), label, lines, width=width, height=260, with_zero=True
    )


def _levels(metrics: Metrics) -> list[tuple[str, list[tuple[int, float]]]]:
    """Return the losses by range of timesteps, from metrics such as `loss_t0_249`."""
    names = dict.fromkeys(name for line in metrics for name in line if name.startswith(_LEVELS))
    return [
        (name.removeprefix(_LEVELS).replace("_", " to "), _smoothed(points_of(metrics, name)))
        for name in sorted(names, key=_first_number)
    ]


def _first_number(name: str) -> float:
    number = name.removeprefix(_LEVELS).partition("_")[0]
    return int(number) if number.isdecimal() and len(number) < 9 else math.inf


def _rates(metrics: Metrics) -> list[tuple[str, list[tuple[int, float]]]]:
    names = dict.fromkeys(name for line in metrics for name in line if name.startswith("lr_"))
    named = [(name.removeprefix("lr_").replace("_", " "), name) for name in names]
    first = ("first part" if named else "rate", "lr")
    return [(shown, points_of(metrics, name)) for shown, name in (first, *named)]


def _smoothed(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return means over fiftieths of the run, since single values vary too much to compare."""
    size = max(1, math.ceil(len(points) / 50))
    pieces = [points[start : start + size] for start in range(0, len(points), size)]
    return [(piece[-1][0], sum(y for _, y in piece) / len(piece)) for piece in pieces]
