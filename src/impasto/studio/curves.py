"""The values of `metrics.jsonl` as curves, thinned out to the resolution of a chart."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from impasto.runs.lines import object_of, read_lines, size_of

POINTS = 1500
"""Maximum number of points of a curve; a chart is about this many pixels wide."""

SKETCHED_FROM = 4 << 20
"""File size in bytes from which the first reading samples lines: 10,000 lines take 200 ms."""

_SKETCHED_LINES = 800  # about the width of a chart in pixels; ten values of each take 15 ms
_LARGEST_STEP = 2**63 - 1
_LARGEST = 1e300  # larger values, infinities and NaN cannot be drawn in a chart
_NOT_CURVES = frozenset({"step", "time", "epoch", "samples_seen"})

Curves = dict[str, tuple[list[int], list[float]]]
"""Metric name -> steps and values, in the order of the steps."""


def read_curves(file: Path, *, exact: bool = True, points: int = POINTS) -> Curves:
    """Read the curves of a run.

    Args:
        file: `metrics.jsonl`; a missing file gives no curves.
        exact: Whether every line is read; if not, a large file is sampled at even distances.
        points: Maximum number of points of a curve. For each stretch, the smallest and the largest
            value are kept, so that no peak is lost (of the lines that were read).
    """
    size = size_of(file)
    lines = read_records(file) if exact or size < SKETCHED_FROM else _some_lines(file, size)
    curves: dict[
        str, tuple[array[int], array[float]]
    ] = {}  # arrays need an eighth of the memory of lists
    for _, record in lines:
        step = record["step"]
        if abs(step) > _LARGEST_STEP:
            continue
        for name, value in numbers_of(record).items():
            steps, values = curves.setdefault(name, (array("q"), array("d")))
            steps.append(step)
            values.append(value)
    return {name: _thinned(*curve, points) for name, curve in curves.items()}


def numbers_of(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the values of a line of metrics that can be drawn, by name."""
    return {
        name: value
        for name, value in record.items()
        if name not in _NOT_CURVES
        and isinstance(value, (int, float))
        and not isinstance(value, bool)
        and abs(value) < _LARGEST
    }


def read_records(file: Path, offset: int = 0) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the records from a file offset on, each with the offset after it, in bytes."""
    return ((position, line) for position, line in read_lines(file, offset) if _is_record(line))


def _some_lines(file: Path, size: int) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield about `_SKETCHED_LINES` records at even distances, including the first and the last."""
    with file.open("rb") as content:
        yield from _records_at(content, [0])
        step = size / _SKETCHED_LINES
        yield from _records_at(content, (int(n * step) for n in range(1, _SKETCHED_LINES)))
        content.seek(max(0, size - 65_536))
        *_, last = [None, *content.read().splitlines(keepends=True)]
        record = _record(last) if last is not None and last.endswith(b"\n") else None
        if record is not None:
            yield size, record


def _records_at(content: Any, offsets: Iterable[int]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for offset in offsets:
        content.seek(offset)
        if offset:
            content.readline()  # the rest of a line
        record = _record(content.readline())
        if record is not None:
            yield offset, record


def _record(line: bytes) -> Mapping[str, Any] | None:
    found = object_of(line)
    return found if found is not None and _is_record(found) else None


def _is_record(line: Mapping[str, Any]) -> bool:
    return type(line.get("step")) is int


def _thinned(
    steps: Sequence[int], values: Sequence[float], points: int
) -> tuple[list[int], list[float]]:
    if len(steps) <= points:
        return [*steps], [*values]
    kept: list[int] = []
    stretch = 2 * len(steps) / points
    begin = 0.0
    while begin < len(steps):
        rows = range(int(begin), min(len(steps), int(begin + stretch)))
        begin += stretch
        if rows:
            kept += sorted({min(rows, key=values.__getitem__), max(rows, key=values.__getitem__)})
    return [steps[n] for n in kept], [values[n] for n in kept]
