"""Charts as inline SVG, drawn by matplotlib, with text left as text."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence

import matplotlib as mpl

mpl.use("svg")
from matplotlib.figure import Figure

INK, GRID, BLUE, ORANGE = "#5b6270", "#8a91a033", "#3b6fd4", "#d9722e"
_STYLE = {
    "font.family": "sans-serif",
    "font.size": 10,
    "svg.fonttype": "none",
    "svg.hashsalt": "impasto",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}

Points = Sequence[tuple[float, float]]


def loss_chart(training: Points, validation: Points) -> str:
    """Training loss as measured and smoothed, and validation loss, over updates."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9.2, 3.4))
        axes = figure.subplots()
        if training:
            steps, losses = zip(*training, strict=True)
            axes.plot(steps, losses, color=BLUE, alpha=0.25, linewidth=1)
            axes.plot(steps, _smoothed(losses), color=BLUE, linewidth=2, label="training, smoothed")
        if validation:
            steps, losses = zip(*validation, strict=True)
            axes.plot(
                steps, losses, color=ORANGE, linewidth=2, marker="o", markersize=4,
                label="validation",
            )  # fmt: skip
        axes.set_xlabel("updates")
        axes.set_ylabel("loss")
        axes.set_ylim(bottom=0)
        axes.grid(color=GRID)
        axes.legend(frameon=False)
        return _svg(figure)


def histogram_chart(values: Sequence[float], label: str, marks: Sequence[float] = ()) -> str:
    """How many pictures have which value, with lines where something begins."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9.2, 2.4))
        axes = figure.subplots()
        axes.hist(list(values), bins=min(60, max(10, len(set(values)))), color=BLUE)
        for mark in marks:
            axes.axvline(mark, color=ORANGE, linewidth=1.5, linestyle="--")
        axes.set_xlabel(label)
        axes.set_ylabel("pictures")
        return _svg(figure)


def bucket_chart(buckets: Mapping[str, int]) -> str:
    """Pictures per bucket."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9.2, 0.6 + 0.32 * len(buckets)))
        axes = figure.subplots()
        bars = axes.barh(list(buckets), list(buckets.values()), color=BLUE, height=0.65)
        axes.bar_label(bars, padding=4)
        axes.invert_yaxis()
        axes.set_xlabel("pictures")
        axes.tick_params(axis="y", length=0)
        return _svg(figure)


def _smoothed(values: Sequence[float]) -> list[float]:
    """An exponential mean over about a twentieth of the curve."""
    keep = 1 - 1 / max(1.0, len(values) / 20)
    smooth, mean = [], values[0]
    for value in values:
        mean = keep * mean + (1 - keep) * value
        smooth.append(mean)
    return smooth


def _svg(figure: Figure) -> str:
    """The figure as an <svg> element that scales with the page."""
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None}
    )
    text = buffer.getvalue()
    svg = text[text.index("<svg") :]
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'width="100%"', svg, count=1)
