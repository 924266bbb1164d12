"""The results of `bench quality`, as numbers with errors, as a table and as a sheet of samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from PIL import Image

from bench.quality_job import Place, mean_and_error, names_of, read_result
from bench.quality_rows import BASE, MERGES, REFERENCE, UNMERGED, Row
from impasto.progress import counted
from impasto.runs.evidence import CONFIDENCE, t_tail
from impasto.sampling.sheet import draw_sheet

MEASURES: dict[str, tuple[str, int]] = {
    "validation_loss": ("validation loss", -1),
    "kernel_distance": ("kernel distance", -1),
    "frechet_distance": ("Fréchet distance", -1),
    "image_similarity": ("similarity to the real image", 1),
    "prompt_tags": ("things recognised", 1),
    "authentic": ("authentic", 0),
}
"""The title of each measure, and which direction is better: 1 up, -1 down, 0 neither."""

SHOWN = (1, 3, 4, 6, 9, 10)
"""Indices of the held-out things on the sheet."""

THUMBNAIL = 72
"""Side in pixels of an image on the sheet."""


def gather(place: Place, wanted: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Return mean, error and paired difference from the reference, by row and measure.

    The difference is None for the reference, for a single seed, and where it was not measured.
    """
    names = [name for row in wanted for name in names_of(row)]
    numbers = {
        name: {
            seed: result["numbers"]
            for seed in place.setup.seeds
            if (result := read_result(place, name, seed)) is not None
        }
        for name in names
    }
    reference = numbers.get(REFERENCE, {})
    return {
        name: {key: _summary(key, numbers[name], reference) for key in MEASURES}
        for name in names
        if numbers[name]
    }


def _summary(
    key: str, own: dict[int, dict[str, Any]], reference: dict[int, dict[str, Any]]
) -> dict[str, Any]:
    values = {seed: found[key] for seed, found in own.items() if found.get(key) is not None}
    if not values:
        return {"mean": None}
    mean, error = mean_and_error(list(values.values()))
    paired = [s for s in values if s in reference and own is not reference]
    differences = [values[seed] - reference[seed][key] for seed in paired]
    summary = {"mean": mean, "error": _number(error), "seeds": sorted(values)}
    if len(differences) > 1:
        shift, of_shift = mean_and_error(differences)
        summary |= {
            "paired": paired, "difference": shift, "difference_error": _number(of_shift)
        }  # fmt: skip
    return summary


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def as_markdown(found: dict[str, dict[str, Any]]) -> str:
    """Return two Markdown tables: means, and differences from the reference, with errors.

    A plus marks a result better than the reference and a minus a worse one, each with an error
    probability of 5 % by Student's t-test of the differences by seed.
    """
    return f"{_table(found, _cell)}\nDifferences\n\n{_table(found, _difference)}"


def _table(found: dict[str, dict[str, Any]], cell: Callable[[str, dict[str, Any]], str]) -> str:
    lines = [
        "| | " + " | ".join(title for title, _ in MEASURES.values()) + " |",
        "|---" * (len(MEASURES) + 1) + "|",
    ]
    for name, numbers in found.items():
        cells = [cell(key, numbers[key]) for key in MEASURES]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(key: str, summary: dict[str, Any]) -> str:
    if summary["mean"] is None:
        return "–"
    return f"{_with_error(summary['mean'], summary['error'])} {_sign(key, summary)}".strip()


def _difference(key: str, summary: dict[str, Any]) -> str:
    if summary.get("difference") is None:
        return "–"
    shown = _with_error(summary["difference"], summary["difference_error"], sign="+")
    return f"{shown} {_sign(key, summary)}".strip()


def _sign(key: str, summary: dict[str, Any]) -> str:
    """Return `(+)` for better, `(-)` for worse, an empty string within the noise."""
    better = MEASURES[key][1]
    difference, error = summary.get("difference"), summary.get("difference_error")
    if not better or not difference or error is None:
        return ""
    degrees = len(summary["paired"]) - 1
    chance = 2 * t_tail(abs(difference) / error, degrees) if error else 0.0
    if chance > 1 - CONFIDENCE:
        return ""
    return "(+)" if difference * better > 0 else "(-)"


def _with_error(value: float, error: float | None, sign: str = "") -> str:
    """Format a number with its error, to two digits of the error and at most three decimals."""
    if error is None:
        return f"{value:{sign}.3g}"
    places = 3 if error == 0 else min(3, max(0, 1 - math.floor(math.log10(error))))
    return f"{value:{sign}.{places}f} ± {error:.{places}f}"


def told(numbers: dict[str, Any]) -> str:
    """Format the measures of a row on one line."""
    return ", ".join(f"{MEASURES[key][0]} {_cell(key, of)}" for key, of in numbers.items())


def draw_samples(place: Place, names: Sequence[str]) -> Any:
    """Draw a sheet of the first seed: a line per table row, a column per held-out thing."""
    seed = place.setup.seeds[0]
    folder = place.folder / "thumbnails"
    folder.mkdir(exist_ok=True)
    cells, labels = {}, []
    for name in names:
        result = read_result(place, name, seed)
        if result is None:
            continue
        for column, thing in enumerate(SHOWN):
            small = folder / f"{len(labels)}-{column}.png"
            with Image.open(place.folder / result["samples"][thing * place.setup.per_prompt]) as of:
                of.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS).save(small)
            cells[len(labels), column] = small
        labels.append(name)
    return draw_sheet(cells, labels)


def at_equal_content(place: Place) -> dict[str, str]:
    """Return a table row: the preset's style at the content that the reference preserves.

    Mixtures of the base model and the preset's result lie between the two. The kernel distance is
    interpolated, per seed, between the two mixtures whose fractions of recognised things enclose
    the reference's; a seed without such a pair is left out.
    """
    differences = []
    for seed in place.setup.seeds:
        found = [
            read_result(place, name, seed) for name in (BASE, *MERGES.values(), UNMERGED, REFERENCE)
        ]
        if any(result is None for result in found):
            continue
        *way, reference = [result["numbers"] for result in found if result is not None]
        distance = _distance_at(way, reference["prompt_tags"])
        if distance is not None:
            differences.append(distance - reference["kernel_distance"])
    if not differences:
        return {}
    mean, error = mean_and_error(differences)
    name = "what our preset trains, mixed with the base model until it keeps as much as sd-scripts"
    value = f"{_with_error(mean, _number(error), sign='+')} ({counted(len(differences), 'seeds')})"
    return {f"{name}: kernel distance less theirs": value}


def _distance_at(way: Sequence[dict[str, Any]], share: float) -> float | None:
    """Return the kernel distance at a fraction of recognised things, interpolated along `way`.

    None if no two neighbours enclose the fraction.
    """
    for near, far in pairwise(way):
        high, low = near["prompt_tags"], far["prompt_tags"]
        if low <= share <= high:
            part = 0.0 if high == low else (high - share) / (high - low)
            return float(
                near["kernel_distance"] + part * (far["kernel_distance"] - near["kernel_distance"])
            )
    return None
