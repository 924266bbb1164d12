"""The charts of the report pages: loss over steps, histograms, images per bucket."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from impasto.report.svg import (
    WIDTH,
    Axis,
    bar,
    bottom_axis,
    curve,
    dot,
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

MOST_POINTS = 600  # of a curve; a longer run is thinned out
MOST_DOTS = 120
MOST_BARS = 60
FEWEST_BARS = 8
_MOST_MARKED = 12  # points of a curve that are marked
_RIGHT, _TOP, _BOTTOM = WIDTH - 30, 34, 48


def loss_chart(training: Points, validation: Points) -> str:
    """Training loss as measured and smoothed, and validation loss, over steps.

    Losses that are not finite are left out.
    """
    training, validation = _finite(training), _finite(validation)
    everything = [*training, *validation]
    if not everything:
        return ""
    height = 330
    losses = [y for _, y in everything]
    ticks = round_ticks(min(0.0, *losses), max(0.0, *losses), 6)
    left = 40 + text_width(tick_labels(ticks))
    y_axis = Axis(ticks, height - _BOTTOM, _TOP, ticks[0], ticks[-1])
    first, last = min(x for x, _ in everything), max(x for x, _ in everything)
    x_ticks = round_ticks(first, last, 10, whole=True)
    x_axis = Axis(x_ticks, left, _RIGHT, first, max(last, first + 1))

    def placed(points: Points) -> list[tuple[float, float]]:
        return [(x_axis.at(x), y_axis.at(y)) for x, y in points]

    parts = left_axis(y_axis, left, _RIGHT, "loss")
    parts += bottom_axis(x_axis, height - _BOTTOM, "steps")
    names = []
    if training:
        parts.append(curve(placed(_thinned(training)), "raw"))
        parts.append(curve(placed(_smoothed(training)), "first"))
        names += [("raw", "training, as measured"), ("first", "training, smoothed")]
        if len(training) == 1:
            x, y = training[0]
            parts.append(dot(x_axis.at(x), y_axis.at(y), "first", f"{y:.4f} after {x:,} steps"))
    if validation:
        parts.append(curve(placed(validation), "second"))
        if len(validation) <= MOST_DOTS:
            parts += [
                dot(x_axis.at(x), y_axis.at(y), "second", f"{y:.4f} after {x:,} steps")
                for x, y in validation
            ]
        names.append(("second", "validation"))
    return svg(height, "Loss over steps", [*parts, *legend(_RIGHT, 14, names)])


def curves_chart(title: str, curves: Sequence[tuple[str, str, Points]], *, smooth: bool) -> str:
    """The same value of several runs over steps.

    Values that are not finite are left out. A curve of one value is a dot.

    Args:
        title: What is measured.
        curves: Of each run the class of its line, its name, and the points.
        smooth: Whether a mean over about a twentieth of each curve is drawn in its place.
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
    parts = left_axis(y_axis, left, _RIGHT, title)
    parts += bottom_axis(x_axis, height - _BOTTOM, "steps")
    for kind, name, points in known:
        placed = [(x_axis.at(x), y_axis.at(y)) for x, y in points]
        parts.append(curve(placed, kind))
        if len(points) <= _MOST_MARKED:
            parts += [
                dot(*place, kind, f"{name}: {y:.4g} after {x:,} steps")
                for place, (x, y) in zip(placed, points, strict=True)
            ]
    names = ", ".join(name for _, name, _ in known)
    return svg(height, f"{title} over steps: {names}", parts)


def histogram_chart(
    values: Sequence[float], label: str, marks: Sequence[float] = (), *, whole: bool = False
) -> str:
    """How many images have which value, with dashed lines where something begins.

    Args:
        values: A value of each image.
        label: What is counted, with its unit.
        marks: Values to mark.
        whole: Whether only whole numbers occur.
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
    parts = left_axis(y_axis, left, _RIGHT, "images")
    for edge, count in zip(edges, counts, strict=False):
        x, y = x_axis.at(edge), y_axis.at(count)
        if count:
            said = f"{edge:g}" if whole and width == 1 else f"{edge:g} to {edge + width:g}"
            drawn = max(1.0, x_axis.at(edge + width) - x - 1)
            parts.append(bar(x + 0.5, y, drawn, y_axis.start - y, f"{said}: {count:,}"))
    for mark in marks:
        if x_axis.low <= mark <= x_axis.high:
            x = x_axis.at(mark)
            parts.append(line(x, 18, x, y_axis.start, "mark"))
            parts.append(text(x, 13, f"{mark:g}"))
    parts += bottom_axis(x_axis, height - _BOTTOM, label)
    return svg(height, f"Images by {label}", parts)


def _edges(values: Sequence[float], *, whole: bool) -> list[float]:
    """Round values between the bars of a histogram; the last bar begins below the largest."""
    low, high = min(values), max(values)
    edges = round_ticks(low, high, MOST_BARS // 2, whole=whole)
    width = edges[1] - edges[0]
    if high >= edges[-1]:
        edges.append(edges[-1] + width)
    while len(edges) <= FEWEST_BARS:
        edges = [*([edges[0] - width] if edges[0] >= width else []), *edges, edges[-1] + width]
    return edges


def bucket_chart(buckets: Mapping[str, int]) -> str:
    """Images per bucket, as bars with their numbers."""
    if not buckets:
        return ""
    row, top = 26, 6
    left = 16 + text_width(buckets)
    right = _RIGHT - 10 - text_width(f"{count:,}" for count in buckets.values())
    most = max(1, *buckets.values())
    parts = []
    for index, (name, count) in enumerate(buckets.items()):
        y = top + index * row
        width = (right - left) * count / most
        words = f"{count:,}"
        parts.append(text(left - 8, y + 17, name, "end"))
        parts.append(bar(left, y + 4, max(1.0, width), row - 8, f"{name}: {words}"))
        parts.append(text(left + width + 8, y + 17, words, "start"))
    bottom = top + len(buckets) * row
    parts.append(line(left, top, left, bottom, "axis"))
    parts.append(text((left + right) / 2, bottom + 18, "images per bucket", name="label"))
    return svg(bottom + 28, "Images per bucket", parts)


def _finite(points: Points) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if isinstance(y, (int, float)) and math.isfinite(y)]


def _smoothed(points: Points) -> list[tuple[float, float]]:
    """An exponential mean over about a twentieth of the curve, thinned out.

    Its beginning is the mean of what there is so far, not the first value, which may be far off.
    """
    window = max(1.0, len(points) / 20)
    smooth, mean = [], 0.0
    for index, (x, y) in enumerate(points):
        mean += (y - mean) / min(window, index + 1)
        smooth.append((x, mean))
    every = math.ceil(len(smooth) / MOST_POINTS)
    return smooth[::every] if (len(smooth) - 1) % every == 0 else [*smooth[::every], smooth[-1]]


def _thinned(points: Points) -> list[tuple[float, float]]:
    """The least and the largest of each stretch, in their order, so that no peak is lost."""
    each = math.ceil(2 * len(points) / MOST_POINTS)
    if each <= 2:
        return list(points)
    kept: list[tuple[float, float]] = []
    for start in range(0, len(points), each):
        stretch = points[start : start + each]
        ends = {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
        kept += sorted(ends)
    return kept
