"""Makes the page of a learning-rate range test: the loss by learning rate, and a suggestion."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from markupsafe import Markup

from impasto import files
from impasto.report.page import rendered
from impasto.report.svg import (
    WIDTH,
    Axis,
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
from impasto.training.analysis.lr_range import LrCurve, Suggestion

_HEIGHT, _TOP, _BOTTOM, _RIGHT = 330, 34, 48, WIDTH - 30
_SUGGESTED = "suggested"


def write_lr_page(path: Path, title: str, measured: LrCurve, suggestion: Suggestion) -> None:
    """Write the page of a learning-rate range test.

    Args:
        path: The path of the page.
        title: The title, which names the tested model or settings.
        measured: The losses by learning rate.
        suggestion: The suggested learning rate, with the reason.

    Raises:
        StorageError: The page could not be written.
    """
    rows = [
        {"rate": f"{rate:.3g}", "loss": f"{loss:.4f}" if math.isfinite(loss) else "not finite"}
        for rate, loss in zip(measured.rates, measured.losses, strict=True)
    ]
    content = {
        "title": title,
        "lr": None if suggestion.lr is None else f"{suggestion.lr:.2g}",
        "reason": suggestion.reason,
        "chart": Markup(lr_chart(measured, suggestion)),
        "first": f"{measured.first:.4f}",
        "rows": rows,
    }
    page = rendered("lr.html.j2", content)
    files.write_text(path, page.encode("utf-8", errors="replace").decode("utf-8"))


def lr_chart(measured: LrCurve, suggestion: Suggestion) -> str:
    """Draw the loss over the learning rate on a logarithmic axis; empty if no loss is usable.

    Losses that diverged are left out, since they would flatten the rest of the curve.
    """
    exponents = [math.log10(rate) for rate in measured.rates]
    known = list(zip(exponents, measured.losses, strict=True))[: measured.known]
    if not known:
        return ""
    losses = [measured.first, *(loss for _, loss in known)]
    ticks = round_ticks(min(losses), max(losses), 6)
    left = 40 + text_width(tick_labels(ticks))
    y_axis = Axis(ticks, _HEIGHT - _BOTTOM, _TOP, ticks[0], ticks[-1])
    low, high = _ends(exponents, suggestion)
    x_axis = Axis([low, high], left, _RIGHT, low, high)
    elements = left_axis(y_axis, left, _RIGHT, "loss")
    elements += _decades(x_axis)
    elements.append(curve(((x_axis.at(x), y_axis.at(y)) for x, y in known), "raw"))
    smooth = list(zip(exponents, measured.smoothed, strict=False))
    elements.append(curve(((x_axis.at(x), y_axis.at(y)) for x, y in smooth), "first"))
    at = measured.least
    if at is not None:
        x, y = smooth[at]
        title = f"least, {y:.4f} at {measured.rates[at]:.2g}"
        elements.append(dot(x_axis.at(x), y_axis.at(y), "first", title))
    if suggestion.lr is not None:
        x = x_axis.at(math.log10(suggestion.lr))
        elements.append(line(x, 26, x, y_axis.start, "mark"))
        elements.append(text(x, 20, f"{_SUGGESTED} {suggestion.lr:.2g}"))
    names = [("raw", "as measured"), ("first", "mean of neighbours")]
    return svg(_HEIGHT, "Loss by learning rate", [*elements, *legend(_RIGHT, 8, names)])


def _ends(exponents: Sequence[float], suggestion: Suggestion) -> tuple[float, float]:
    """Return the bounds of the axis, which include the suggestion even if it is below all rates."""
    shown = [*exponents, *([] if suggestion.lr is None else [math.log10(suggestion.lr)])]
    low, high = min(shown), max(shown)
    return low, max(high, low + 1e-3)


def _decades(axis: Axis) -> Iterator[str]:
    """Yield the axis with labels at powers of ten and, on a short axis, at 2 and 5 times these."""
    yield line(axis.start, _HEIGHT - _BOTTOM, axis.end, _HEIGHT - _BOTTOM, "axis")
    several = axis.high - axis.low > 4
    for power in range(math.floor(axis.low), math.ceil(axis.high) + 1):
        for factor in (1,) if several else (1, 2, 5):
            exponent = power + math.log10(factor)
            if axis.low - 1e-9 <= exponent <= axis.high + 1e-9:
                x, y = axis.at(exponent), _HEIGHT - _BOTTOM
                yield line(x, y, x, y + 4, "axis")
                yield text(x, y + 18, f"{factor}e{power}")
    yield text((axis.start + axis.end) / 2, _HEIGHT - _BOTTOM + 38, "learning rate", name="label")
