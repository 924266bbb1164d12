"""Makes the page of an evaluation, as one self-contained HTML file."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from impasto import files
from impasto.data.pixels import images
from impasto.data.pixels.cuts import cut_out
from impasto.data.records import Size
from impasto.evaluation.image_features import CaptionedImage
from impasto.evaluation.results import (
    BETTER,
    NOISE,
    WORSE,
    caution_text,
    difference_texts,
    estimate_text,
)
from impasto.report.page import rendered

MOST_ROWS = 48
"""Maximum number of prompts that are shown; all are in the JSON file."""

THUMBNAIL = 160
_MOODS = {BETTER: "good", WORSE: "bad", NOISE: "dim"}
_ARROWS = {"lower": "lower is better", "higher": "higher is better", "neither": ""}


def write_evaluation(
    page: Path,
    values: Mapping[str, Any],
    real: Mapping[str, CaptionedImage],
    training: Mapping[str, CaptionedImage],
) -> None:
    """Write the page: measures, differences between models, and rows of images.

    Args:
        page: The path of the page; paths of samples in `values` are relative to its folder.
        values: The content of the evaluation's JSON file.
        real: Name of a real image -> the image.
        training: Name of a training image -> the image.

    Raises:
        StorageError: The page could not be written.
    """
    shown = shown_rows(values["pairs"], MOST_ROWS)
    content = {
        "title": f"{len(values['models'])} models evaluated"
        if len(values["models"]) > 1
        else f"{values['models'][0]['name']} evaluated",
        "facts": _facts(values),
        "several": len(values["models"]) > 1,
        "differences": difference_texts(values),
        "caution": caution_text(values),
        "tables": list(_tables(values)),
        "notes": values["notes"],
        "networks": values["features"],
        "rows": [_row(pair, page.parent, real, training) for pair in shown],
        "all_rows": len(values["pairs"]),
        "level": round(100 * values["level"]),
    }
    text = rendered("evaluation.html.j2", content)
    files.write_text(page, text.encode("utf-8", errors="replace").decode("utf-8"))


def shown_rows(pairs: Sequence[Mapping[str, Any]], most: int) -> list[Mapping[str, Any]]:
    """Select the prompts to show: those with a copy first, then others, evenly spread, in order."""
    if len(pairs) <= most:
        return list(pairs)
    has_copy = [any(sample.get("is_copy") for sample in pair["samples"]) for pair in pairs]
    copied = [n for n, copy in enumerate(has_copy) if copy][:most]
    others = [n for n, copy in enumerate(has_copy) if not copy]
    room = most - len(copied)
    spread = [others[k * len(others) // room] for k in range(room)] if others and room else []
    return [pairs[n] for n in [*copied, *spread]]


def _facts(values: Mapping[str, Any]) -> list[dict[str, str]]:
    named = {
        "models": len(values["models"]),
        "prompts": values["prompts"],
        "images of each model": values["prompts"] * values["images_per_prompt"],
        "real images": values["images"]["images"],
    }
    if values["training"] is not None:
        named["training images"] = values["training"]["images"]
    return [{"name": name, "value": f"{count:,}", "mood": ""} for name, count in named.items()]


def _tables(values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield one table per network, and one of the measures that need no network."""
    columns = [*values["models"], *values["references"]]
    for network in [*values["features"], None]:
        name = None if network is None else network["name"]
        rows = []
        for measure in values["measures"]:
            cells = [_cell(column, measure["key"], name) for column in columns]
            if any(cells):
                title = measure["title"][0].upper() + measure["title"][1:]
                rows.append({"name": title, "about": _ARROWS[measure["better"]], "cells": cells})
        if rows:
            used = [n for n in range(len(columns)) if any(row["cells"][n] for row in rows)]
            yield {
                "title": "From the images alone" if name is None else f"Features: {name}",
                "columns": [columns[n]["name"] for n in used],
                "rows": [{**row, "cells": [row["cells"][n] for n in used]} for row in rows],
            }


def _cell(column: Mapping[str, Any], key: str, features: str | None) -> dict[str, str] | None:
    for row in column["measures"]:
        if (row["measure"], row["features"]) == (key, features):
            against = row.get("against_first")
            verdict = against["verdict"] if against else None
            return {
                "value": estimate_text({"low": None, "high": None, **row}),
                "difference": estimate_text(against, sign="+") if against else "",
                "verdict": verdict or "",
                "mood": _MOODS.get(verdict or "", ""),
            }
    return None


def _row(
    pair: Mapping[str, Any],
    folder: Path,
    real: Mapping[str, CaptionedImage],
    training: Mapping[str, CaptionedImage],
) -> dict[str, Any]:
    """Return a prompt with its real image, and one sample per model with its nearest image."""
    couples = []
    if pair["image"] is not None:
        couples.append([_shot(real[pair["image"]], "real image", pair["image"])])
    for sample in _one_of_each(pair["samples"]):
        near = "" if sample["similarity"] is None else f"similarity {sample['similarity']:.2f}"
        couple = [_shot(CaptionedImage(folder / sample["file"]), sample["model"], near)]
        if "nearest" in sample:
            title = "nearest training image"
            couple.append(
                _shot(training[sample["nearest"]], title, sample["nearest"], is_small=True)
            )
            couple[0]["is_copy"] = sample["is_copy"]
        couples.append(couple)
    return {"prompt": pair["prompt"] or "(empty prompt)", "couples": couples}


def _one_of_each(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return one sample per model: a copy if there is one, or else the first."""
    found: dict[str, Mapping[str, Any]] = {}
    for sample in samples:
        known = found.setdefault(sample["model"], sample)
        if sample.get("is_copy") and not known.get("is_copy"):
            found[sample["model"]] = sample
    return list(found.values())


def _shot(
    source: CaptionedImage, title: str, about: str, *, is_small: bool = False
) -> dict[str, Any]:
    return {
        "image": _data_url(source),
        "title": title,
        "about": about,
        "is_small": is_small,
        "is_copy": False,
    }


def _data_url(source: CaptionedImage) -> str:
    """Return a thumbnail as a data URL, empty if the image is unreadable."""
    least = None if source.cut else Size(THUMBNAIL, THUMBNAIL)
    try:
        image = cut_out(images.read_rgb(source.path, at_least=least), source.cut)
    except (images.UnreadableImageError, OSError):
        return ""
    image.thumbnail((2 * THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
