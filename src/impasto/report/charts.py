"""The charts of the report pages: loss over steps, histograms, images per bucket."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from impasto.report.svg import (
    WIDTH,
    Axis,
    bar,
    bottom_axis,
    curve,
    dot,
    error_bar,
    left_axis,
    legend,
    line,
    round_ticks,
    svg,
    text,
    text_width,
    tick_labels,
)

Points = Sequence[tuple[float, float]]

MOST_POINTS = 600  # maximum per curve; a longer run is thinned out
MOST_DOTS = 120
MOST_BARS = 60
FEWEST_BARS = 8
_MOST_MARKED = 12  # a curve with more points has no dots
_RIGHT, _TOP, _BOTTOM = WIDTH - 30, 34, 48
_LEGEND_ROW = 20


@dataclass(frozen=True)
class Line:
    """A curve of a chart.

    Attributes:
        kind: The CSS class of its line.
        name: Its name in the legend.
        points: Its points; those with values that are not finite are left out.
        is_marked: Whether each point has a dot, unless there are more than `MOST_DOTS`.
        errors: Standard errors of values, by their position on the horizontal axis.
    """

    kind: str
    name: str
    points: Points
    is_marked: bool = False
    errors: Mapping[float, float] = field(default_factory=dict)


def loss_chart(
    training: Points,
    validation: Points,
    errors: Mapping[float, float] | None = None,
    width: float = WIDTH,
) -> str:
    """Draw the training loss, as measured and smoothed, and the validation loss over steps.

    Losses that are not finite are left out.

    Args:
        training: Steps with their training loss.
        validation: Steps with the loss of held-out images.
        errors: Step -> the standard error of its validation loss, if known.
        width: Width of the drawing.
    """
    training = _finite(training)
    lines = [Line("second", "validation", validation, is_marked=True, errors=errors or {})]
    if training:
        lines = [
            Line("raw", "training, as measured", _thinned(training)),
            Line("first", "training, smoothed", _smoothed(training), is_marked=len(training) == 1),
            *lines,
        ]
    return line_chart("Loss", "loss", lines, width=width, with_zero=True)


def line_chart(
    title: str,
    label: str,
    lines: Sequence[Line],
    *,
    width: float = WIDTH,
    height: float = 330,
    with_zero: bool = False,
) -> str:
    """Draw curves over steps with a legend; return an empty text if no curve has a point.

    Args:
        title: A description for screen readers.
        label: The label of the vertical axis.
        lines: The curves.
        width: Width of the drawing; a narrow one has its legend in several rows.
        height: Height of the drawing, without additional rows of the legend.
        with_zero: Whether the vertical axis includes 0.
    """
    known = [(one, points) for one in lines if (points := _finite(one.points))]
    everything = [point for _, points in known for point in points]
    if not everything:
        return ""
    names = [(one.kind, one.name) for one, _ in known]
    rows = legend_rows(width, names)
    top, height = _TOP + _LEGEND_ROW * (len(rows) - 1), height + _LEGEND_ROW * (len(rows) - 1)
    right = width - 30
    values = [y for _, y in everything]
    bounds = (0.0, *values) if with_zero else values
    ticks = round_ticks(min(bounds), max(bounds), 6)
    left = 40 + text_width(tick_labels(ticks))
    y_axis = Axis(ticks, height - _BOTTOM, top, ticks[0], ticks[-1])
    first, last = min(x for x, _ in everything), max(x for x, _ in everything)
    x_ticks = round_ticks(first, last, 10 if width >= WIDTH else 4, whole=True)
    x_axis = Axis(x_ticks, left, right, first, max(last, first + 1))
    elements = left_axis(y_axis, left, right, label)
    elements += bottom_axis(x_axis, height - _BOTTOM, "steps")
    for one, points in known:
        elements += _drawn(one, points, x_axis, y_axis)
    for number, row in enumerate(rows):
        elements += legend(right, 14 + _LEGEND_ROW * number, row)
    return svg(height, f"{title} over steps", elements, width)


def _drawn(one: Line, points: Points, x_axis: Axis, y_axis: Axis) -> list[str]:
    """Return the elements of a curve, its dots, and its error bars, clipped to the chart."""
    elements = [curve([(x_axis.at(x), y_axis.at(y)) for x, y in points], one.kind)]
    if not one.is_marked or len(points) > MOST_DOTS:
        return elements
    for x, y in points:
        said, error = f"{y:.4f} after {x:,} steps", one.errors.get(x)
        if error is not None and math.isfinite(error):
            low, high = max(y - error, y_axis.low), min(y + error, y_axis.high)
            elements.append(error_bar(x_axis.at(x), y_axis.at(low), y_axis.at(high), one.kind))
            said = f"{y:.4f} ± {error:.4f} after {x:,} steps"
        elements.append(dot(x_axis.at(x), y_axis.at(y), one.kind, said))
    return elements


def legend_rows(width: float, names: Sequence[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    """Distribute the entries of a legend to as many rows as the width requires."""
    rows: list[list[tuple[str, str]]] = [[]]
    room = width - 60
    for entry in names:
        own = text_width([entry[1]]) + 44
        if rows[-1] and own > room:
            rows.append([])
            room = width - 60
        rows[-1].append(entry)
        room -= own
    return rows


def curves_chart(title: str, curves: Sequence[tuple[str, str, Points]], *, smooth: bool) -> str:
    """Draw one value over steps, with one curve per run; return an empty text if there is no point.

    Values that are not finite are left out. A curve with a single value is a dot.

    Args:
        title: The name of the value.
        curves: For each run, the CSS class of its line, its name, and its points.
        smooth: Whether to draw a running mean over about a twentieth of each curve instead.
    """
    known = [(kind, name, _finite(points)) for kind, name, points in curves]
    known = [
        (kind, name, _smoothed(points) if smooth else _thinned(points))
        for kind, name, points in known
        if points
    ]
    everything = [point for _, _, points in known for point in points]
    if not everything:
        return ""
    height = 300
    values = [y for _, y in everything]
    ticks = round_ticks(min(values), max(values), 6)
    left = 40 + text_width(tick_labels(ticks))
    y_axis = Axis(ticks, height - _BOTTOM, 16, ticks[0], ticks[-1])
    first, last = min(x for x, _ in everything), max(x for x, _ in everything)
    x_ticks = round_ticks(first, last, 10, whole=True)
    x_axis = Axis(x_ticks, left, _RIGHT, first, max(last, first + 1))
    elements = left_axis(y_axis, left, _RIGHT, title)
    elements += bottom_axis(x_axis, height - _BOTTOM, "steps")
    for kind, name, points in known:
        points_drawn = [(x_axis.at(x), y_axis.at(y)) for x, y in points]
        elements.append(curve(points_drawn, kind))
        if len(points) <= _MOST_MARKED:
            elements += [
                dot(*spot, kind, f"{name}: {y:.4g} after {x:,} steps")
                for spot, (x, y) in zip(points_drawn, points, strict=True)
            ]
    names = ", ".join(name for _, name, _ in known)
    return svg(height, f"{title} over steps: {names}", elements)


def histogram_chart(
    values: Sequence[float], label: str, marks: Sequence[float] = (), *, whole: bool = False
) -> str:
    """Draw a histogram of a value over images; return an empty text if there are no images.

    Args:
        values: The value of each image.
        label: The name of the value, with its unit.
        marks: Values at which to draw dashed vertical lines.
        whole: Whether the values are whole numbers.
    """
    if not values:
        return ""
    height = 250
    edges = _edges(values, whole=whole)
    width = edges[1] - edges[0]
    counts = [0] * (len(edges) - 1)
    for value in values:
        counts[min(len(counts) - 1, math.floor((value - edges[0]) / width + 1e-9))] += 1
    y_ticks = round_ticks(0, max(counts), 4, whole=True)
    left = 40 + text_width(tick_labels(y_ticks))
    y_axis = Axis(y_ticks, height - _BOTTOM, 26, 0, y_ticks[-1])
    x_ticks = round_ticks(edges[0], edges[-1], 10, whole=whole)
    x_axis = Axis(x_ticks, left, _RIGHT, edges[0], edges[-1])
    elements = left_axis(y_axis, left, _RIGHT, "images")
    for edge, count in zip(edges, counts, strict=False):
        x, y = x_axis.at(edge), y_axis.at(count)
        if count:
            said = f"{edge:g}" if whole and width == 1 else f"{edge:g} to {edge + width:g}"
            drawn = max(1.0, x_axis.at(edge + width) - x - 1)
            elements.append(bar(x + 0.5, y, drawn, y_axis.start - y, f"{said}: {count:,}"))
    for mark in marks:
        if x_axis.low <= mark <= x_axis.high:
            x = x_axis.at(mark)
            elements.append(line(x, 18, x, y_axis.start, "mark"))
            elements.append(text(x, 13, f"{mark:g}"))
    elements += bottom_axis(x_axis, height - _BOTTOM, label)
    return svg(height, f"Images by {label}", elements)


def _edges(values: Sequence[float], *, whole: bool) -> list[float]:
    """Return round values as edges of a histogram's bars; the last bar has the largest value."""
    low, high = min(values), max(values)
    edges = round_ticks(low, high, MOST_BARS // 2, whole=whole)
    width = edges[1] - edges[0]
    if high >= edges[-1]:
        edges.append(edges[-1] + width)
    while len(edges) <= FEWEST_BARS:
        edges = [*([edges[0] - width] if edges[0] >= width else []), *edges, edges[-1] + width]
    return edges


def bucket_chart(buckets: Mapping[str, int], width: float = WIDTH) -> str:
    """Draw the numbers of images per bucket as horizontal bars; empty without buckets."""
    if not buckets:
        return ""
    row, top = 26, 6
    left = 16 + text_width(buckets)
    right = width - 40 - text_width(f"{count:,}" for count in buckets.values())
    most = max(1, *buckets.values())
    elements = []
    for index, (name, count) in enumerate(buckets.items()):
        y = top + index * row
        length = (right - left) * count / most
        number = f"{count:,}"
        elements.append(text(left - 8, y + 17, name, "end"))
        elements.append(bar(left, y + 4, max(1.0, length), row - 8, f"{name}: {number}"))
        elements.append(text(left + length + 8, y + 17, number, "start"))
    bottom = top + len(buckets) * row
    elements.append(line(left, top, left, bottom, "axis"))
    elements.append(text((left + right) / 2, bottom + 18, "images per bucket", name="label"))
    return svg(bottom + 28, "Images per bucket", elements, width)


def _finite(points: Points) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if isinstance(y, (int, float)) and math.isfinite(y)]


def _smoothed(points: Points) -> list[tuple[float, float]]:
    """Return an exponential mean over about a twentieth of the curve, thinned out.

    It starts with the mean of all values so far, and not with the first value, which may be an
    outlier.
    """
    window = max(1.0, len(points) / 20)
    smooth, mean = [], 0.0
    for index, (x, y) in enumerate(points):
        mean += (y - mean) / min(window, index + 1)
        smooth.append((x, mean))
    every = math.ceil(len(smooth) / MOST_POINTS)
    return smooth[::every] if (len(smooth) - 1) % every == 0 else [*smooth[::every], smooth[-1]]


def _thinned(points: Points) -> list[tuple[float, float]]:
    """Return the smallest and the largest value of each stretch, so that no peak is lost."""
    each = math.ceil(2 * len(points) / MOST_POINTS)
    if each <= 2:
        return list(points)
    kept: list[tuple[float, float]] = []
    for start in range(0, len(points), each):
        stretch = points[start : start + each]
        ends = {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
        kept += sorted(ends)
    return kept
