"""Prints the results of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from impasto.cli.console import Console

_ARROWS = {"lower": "lower is better", "higher": "higher is better", "neither": ""}


def show(console: Console, values: Mapping[str, Any]) -> None:
    """Print a table per measure, then the significant differences, and the notes.

    Args:
        console: Prints the results.
        values: The evaluation, as in its JSON file.
    """
    from impasto.evaluation.results import caution_text, difference_texts

    networks = {network["name"]: network for network in values["features"]}
    for name in [*networks, None]:
        rows = _rows(values, name)
        if not rows:
            continue
        console.heading(_heading(networks[name]) if name is not None else "From the images alone")
        for title, lines in rows.items():
            console.note(title)
            console.table(lines)
    found = difference_texts(values)
    if len(values["models"]) > 1:
        console.heading("Beyond noise")
    for sentence in found:
        console.note(sentence)
    if len(values["models"]) > 1:
        console.note(caution_text(values))
    if values["notes"]:
        console.heading("To keep in mind")
    for sentence in values["notes"]:
        console.note(sentence)


def _heading(network: Mapping[str, Any]) -> str:
    width = "" if network["width"] is None else f", {network['width']} numbers an image"
    return f"Features: {network['name']} ({network['kind']}{width}, {network['sha256'][:12]})"


def _rows(values: Mapping[str, Any], features: str | None) -> dict[str, dict[str, str]]:
    """Return title of a measure -> model -> its value, with the difference from the first."""
    from impasto.evaluation.results import estimate_text

    found: dict[str, dict[str, str]] = {}
    for measure in values["measures"]:
        lines: dict[str, str] = {}
        for model in (*values["models"], *values["references"]):
            for row in model["measures"]:
                if (row["measure"], row["features"]) != (measure["key"], features):
                    continue
                against = row.get("against_first")
                lines[f"  {model['name']}"] = estimate_text({"low": None, "high": None, **row}) + (
                    _difference_text(against) if against else ""
                )
        if lines:
            arrow = _ARROWS[measure["better"]]
            title = measure["title"][0].upper() + measure["title"][1:]
            found[f"{title}{arrow and f' ({arrow})'}"] = lines
    return found


def _difference_text(against: Mapping[str, Any]) -> str:
    from impasto.evaluation.results import estimate_text

    verdict = against["verdict"]
    return f"   {estimate_text(against, sign='+')}" + (f": {verdict}" if verdict else "")
