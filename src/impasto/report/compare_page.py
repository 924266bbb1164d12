"""Makes the page that compares runs, as one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from impasto import files
from impasto.publishing import redact_settings, redact_text
from impasto.report.charts import curves_chart
from impasto.report.comparison import RunFigures, nearest
from impasto.report.matching import SampleRow, matching_samples
from impasto.report.page import allowed_by, rendered
from impasto.report.previews import preview_names, read_preview
from impasto.runs import step_name

HUES, DASHES = 6, 4
"""Numbers of colours and dash patterns; their combinations distinguish 24 runs."""

_CHARTS = (
    ("Loss, smoothed", "loss", True),
    ("Validation loss", "validation_loss", False),
    ("Learning rate", "lr", False),
    ("Images per second", "images_per_s", True),
    ("Memory, MiB", "memory_mib", False),
)
_WITHHELD = "not published"


def write_comparison(
    file: Path,
    runs: Sequence[RunFigures],
    settings: Sequence[tuple[str, str, Sequence[Any]]],
) -> None:
    """Write the self-contained page that compares runs.

    Settings and prompts are shown as far as each run's `saving.publish` allows.

    Args:
        file: The path of the page.
        runs: The runs to compare.
        settings: The settings that differ: path, description, and the value in each run.

    Raises:
        StorageError: The page could not be written.
    """
    publish = [allowed_by(run.config) for run in runs]
    content = {
        "title": f"{len(runs)} runs compared",
        "runs": [
            {"title": run.title, "line": line_class(number), "name": ""}
            for number, run in enumerate(runs)
        ],
        "numbers": rows_by_name([_rows(run, may) for run, may in zip(runs, publish, strict=True)]),
        "charts": _charts(runs),
        "settings": [
            {"name": path, "about": about, "cells": _shown(path, values, publish)}
            for path, about, values in settings
        ],
        "samples": _samples(runs, publish),
        "width": 192,
    }
    page = rendered("compare.html.j2", content)
    files.write_text(file, page.encode("utf-8", errors="replace").decode("utf-8"))


def rows_by_name(columns: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Return the rows of a table that compares runs, from the named entries of each run."""
    names = dict.fromkeys(name for column in columns for name in column)
    return [
        {"name": name, "about": "", "cells": [column.get(name, "–") for column in columns]}
        for name in names
    ]


def line_class(number: int) -> str:
    """Return the CSS classes of a run's line: a colour and, from the seventh run on, dashes."""
    return f"run hue-{number % HUES} dash-{number // HUES % DASHES}"


def value_text(value: Any) -> str:
    """Format the value of a setting for a page."""
    if value is None:
        return "off"
    if isinstance(value, bool):
        return str(value).lower()
    if value in ("", [], {}):
        return "empty"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(value_text, value))
    return str(value)


def _rows(run: RunFigures, publish: tuple[str, ...]) -> dict[str, str]:
    folders = [str(run.run.path), run.run.address]
    return {name: redact_text(text, publish, folders) for name, text in run.rows().items()}


def _charts(runs: Sequence[RunFigures]) -> list[tuple[str, Markup]]:
    found = []
    for title, name, smooth in _CHARTS:
        curves = [
            (line_class(number), run.title, run.curves.get(name, []))
            for number, run in enumerate(runs)
        ]
        drawn = curves_chart(title, curves, smooth=smooth)
        if drawn:
            found.append((title, Markup(drawn)))
    return found


def _shown(path: str, values: Sequence[Any], publish: Sequence[tuple[str, ...]]) -> list[str]:
    keys = [key.partition("[")[0] for key in path.split(".")]
    return [
        _WITHHELD if value is not None and shown is _WITHHELD else value_text(shown)
        for value, shown in (
            (value, _allowed(keys, value, allowed))
            for value, allowed in zip(values, publish, strict=True)
        )
    ]


def _allowed(keys: Sequence[str], value: Any, publish: tuple[str, ...]) -> Any:
    """Return a setting's value as far as `saving.publish` allows it, or else `_WITHHELD`."""
    tree: Any = value
    for key in reversed(keys):
        tree = {key: tree}
    found: Any = redact_settings(tree, publish)
    for key in keys:
        if not isinstance(found, Mapping) or key not in found:
            return _WITHHELD
        found = found[key]
    return found


def _samples(runs: Sequence[RunFigures], publish: Sequence[tuple[str, ...]]) -> list[Any]:
    """Return rows of prompts at the last step that all runs have reached, and at their own last."""
    steps = [[s for s in f.run.sampled_steps() if preview_names(f.run, s)] for f in runs]
    reached = min((of[-1] for of in steps if of), default=0)
    moments = [("at the same step", [nearest(of, reached) for of in steps])]
    if any(of and of[-1] != reached for of in steps):
        moments.append(("at their last steps", [of[-1] if of else None for of in steps]))
    found = []
    for number, row in enumerate(matching_samples([f.run for f in runs])):
        allowed = ["prompts" in may for may, name in zip(publish, row.files, strict=True) if name]
        prompt = row.prompt if all(allowed) else f"prompt {number + 1}"
        for moment, at in moments:
            cells = _cells(runs, row, at, with_texts=all(allowed))
            if any(cells):
                found.append({"prompt": prompt, "moment": moment, "cells": cells})
    return found


def _cells(
    runs: Sequence[RunFigures], row: SampleRow, steps: Sequence[int | None], *, with_texts: bool
) -> list[dict[str, Any] | None]:
    cells: list[dict[str, Any] | None] = []
    told = row.differing if with_texts else [""] * len(runs)
    for figures, name, step, differing in zip(runs, row.files, steps, told, strict=True):
        preview = None
        if name is not None and step is not None:
            file = figures.run.samples / step_name(step) / name
            preview = read_preview(file, with_texts=with_texts)
        cells.append(
            None if preview is None else {"url": preview.url, "step": step, "differing": differing}
        )
    return cells
