"""The parts of a chart as inline SVG: axes with round numbers, gridlines, lines, bars, legends.

Colours and fonts are classes in `static/charts.css`, so charts follow the page's light or dark
scheme. `charts.py` puts the parts together. Lengths are in units of the drawing, about pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources

from markupsafe import escape

WIDTH = 920
_LEAST_SPAN = 1e-300  # smaller (subnormal) numbers have fewer digits and uneven steps
_LEAST_FRACTION = 1e-9  # of the values; finer ticks would coincide
CHARACTER = 7.2  # approximate width of a character at the charts' font size, 13


@dataclass(frozen=True)
class Axis:
    """A linear scale from values to positions.

    Attributes:
        ticks: Round values in ascending order, at least two; the first and last bound the axis
            unless `low` and `high` say otherwise.
        start: Position of `low`.
        end: Position of `high`.
        low: The value at the start of the axis.
        high: The value at its end.
    """

    ticks: Sequence[float]
    start: float
    end: float
    low: float
    high: float

    def at(self, value: float) -> float:
        """Return the position of a value on the axis, in units of the drawing."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def round_ticks(low: float, high: float, most: int, *, whole: bool = False) -> list[float]:
    """Return evenly spaced ticks that enclose a range, in steps of 1, 2 or 5 times a power of ten.

    Args:
        low: The lowest value.
        high: The highest value.
        most: Approximate maximum number of steps between the first and the last tick.
        whole: Whether only whole numbers are allowed.
    """
    least = max(_LEAST_SPAN, _LEAST_FRACTION * max(abs(low), abs(high)))
    span = max(high - low or abs(high) or 1.0, least)
    step = _round_up(span / most)
    if whole:
        step = max(1.0, step)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    return [index * step for index in range(first, last + 1)]


def _round_up(value: float) -> float:
    """Return the smallest of 1, 2, 5 or 10 times a power of ten that is not below a value."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= value * (1 - 1e-9))


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Format ticks with as many decimals as the distance between them requires."""
    step = abs(ticks[1] - ticks[0])
    if step >= 1e6 or step < 1e-4:
        return [f"{tick:.3g}" for tick in ticks]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [f"{tick:,.{decimals}f}" for tick in ticks]


def text_width(texts: Iterable[str]) -> float:
    """Return the approximate width of the longest of some labels."""
    return CHARACTER * max((len(one) for one in texts), default=0)


def text(x: float, y: float, content: str, anchor: str = "middle", name: str = "") -> str:
    """Return a label whose middle, start or end is at x; `name` is its CSS class."""
    kind = f' class="{name}"' if name else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{kind}>{escape(content)}</text>'


def error_bar(x: float, low: float, high: float, name: str) -> str:
    """Return a vertical error bar with short end lines; `name` is its CSS class."""
    ends = (line(x - 3, y, x + 3, y, name) for y in (low, high))
    return "".join((line(x, low, x, high, name), *ends))


def line(x1: float, y1: float, x2: float, y2: float, name: str) -> str:
    """Return a straight line; `name` is its CSS class."""
    return f'<line class="{name}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def bar(x: float, y: float, width: float, height: float, title: str) -> str:
    """Return a filled rectangle with a title as its tooltip."""
    shape = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="1.5"'
    return f'<rect class="bar" {shape}><title>{escape(title)}</title></rect>'


def curve(points: Iterable[tuple[float, float]], name: str) -> str:
    """Return a line through points; `name` is its CSS class."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline class="{name}" points="{path}"/>'


def dot(x: float, y: float, name: str, title: str) -> str:
    """Return a dot with a title as its tooltip; `name` is its CSS class."""
    return (
        f'<circle class="{name}" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{escape(title)}</title>'
        f"</circle>"
    )


def bottom_axis(axis: Axis, y: float, label: str) -> list[str]:
    """Return a horizontal axis at y with short ticks, numbers and a label, without gridlines."""
    elements = [line(axis.start, y, axis.end, y, "axis")]
    for tick, number in zip(axis.ticks, tick_labels(axis.ticks), strict=True):
        if axis.low <= tick <= axis.high:
            elements += [line(axis.at(tick), y, axis.at(tick), y + 4, "axis")]
            elements += [text(axis.at(tick), y + 18, number)]
    middle = (axis.start + axis.end) / 2
    return [*elements, text(middle, y + 38, label, name="label")]


def left_axis(axis: Axis, x: float, right: float, label: str) -> list[str]:
    """Return a vertical axis at x: numbers with gridlines to the right, and a label."""
    elements = []
    for tick, number in zip(axis.ticks, tick_labels(axis.ticks), strict=True):
        y = axis.at(tick)
        elements += [line(x, y, right, y, "grid"), text(x - 8, y + 4.5, number, "end")]
    middle = (axis.start + axis.end) / 2
    turned = (
        f'<text class="label" transform="translate(14 {middle:.1f}) rotate(-90)" '
        f'text-anchor="middle">{escape(label)}</text>'
    )
    return [*elements, turned]


def legend(right: float, y: float, entries: Sequence[tuple[str, str]]) -> list[str]:
    """Return a row of legend entries that ends at `right`; entries are CSS class and name."""
    elements, x = [], right
    for name, title in reversed(entries):
        x -= text_width([title])
        elements += [text(x, y + 4.5, title, "start"), line(x - 26, y, x - 6, y, name)]
        x -= 44
    return elements


def svg(height: float, title: str, elements: Iterable[str], width: float = WIDTH) -> str:
    """Return an <svg> element as wide as the page, with a title for screen readers."""
    return (
        f'<svg class="chart" role="img" aria-label="{escape(title)}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" xmlns="http://www.w3.org/2000/svg">'
        + "".join(elements)
        + "</svg>"
    )


def standalone(drawn: str) -> str:
    """Return a chart as a standalone SVG file with its styles and an opaque background.

    Args:
        drawn: The result of `svg`.
    """
    static = resources.files("impasto.report") / "static"
    styles = "".join(
        (static / name).read_text(encoding="utf-8") for name in ("palette.css", "charts.css")
    )
    head, _, rest = drawn.partition(">")
    ground = '<rect class="ground" width="100%" height="100%" rx="8"/>'
    return f"{head}><style>{styles}.ground {{ fill: var(--card); }}</style>{ground}{rest}"
