"""Drawings as plain values for templates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from impasto.errors import ConfigError
from impasto.parsing import printable
from impasto.runs.draw_requests import COLUMNS, DrawRequest
from impasto.runs.drawings import ENDED, Drawing
from impasto.studio.drawing_desk import DrawingDesk


def drawing_view(drawing: Drawing, desk: DrawingDesk) -> dict[str, Any]:
    """Return the variables of `drawing_state.html.j2` for a drawing."""
    status = drawing.status()
    phase = str(status["phase"])
    try:
        request, fault = drawing.request(), ""
    except ConfigError as error:
        request, fault = None, str(error)
    is_alive = phase not in ENDED
    is_worked = not is_alive or desk.has_worker()
    done = _done(drawing, status)
    return {
        "name": drawing.path.name,
        "when": drawing.when,
        "phase": phase,
        "is_alive": is_alive,
        "needs_worker": not is_worked,
        "now": _now(phase, status, len(done), is_worked=is_worked),
        "progress": _progress(status, len(done)) if phase == "drawing" else None,
        "message": str(status.get("message") or ("" if is_alive else fault)),
        "warning": str(status.get("warning", "")),
        "prompt": "" if request is None else request.settings.prompt,
        "facts": [] if request is None else _facts(request),
        "is_grid": request is not None and (request.x is not None or request.y is not None),
        "columns": _labels(request, "x"),
        "rows": _labels(request, "y"),
        "cells": done,
        "has_grid": drawing.image(drawing.grid_file.name) is not None,
    }


def _done(drawing: Drawing, status: Mapping[str, Any]) -> dict[tuple[int, int], dict[str, Any]]:
    """Return the finished images by row and column; invalid entries of the status are ignored."""
    found = {}
    listed = status.get("done")
    for item in listed if isinstance(listed, list) else ():
        if not isinstance(item, Mapping) or drawing.image(str(item.get("file", ""))) is None:
            continue
        row, column = item.get("row"), item.get("column")
        if type(row) is int and type(column) is int:
            found[row, column] = {
                name: item.get(name) for name in ("file", "seed", "width", "height", "seconds")
            }
    return found


def _now(phase: str, status: Mapping[str, Any], done: int, *, is_worked: bool) -> str:
    """Return a sentence on the current activity, or an empty text after the end."""
    if phase == "waiting":
        return "It is waiting for its turn." if is_worked else "No worker is running."
    if phase == "loading":
        model = printable(PurePath(str(status.get("model", ""))).name)
        return f"Loading {model}" if model else "Loading"
    if phase != "drawing":
        return ""
    if status.get("stage"):
        return str(status["stage"])
    step, steps = status.get("step", 0), status.get("steps", 1)
    return f"Image {done + 1} of {status.get('images', 1)}, step {step} of {steps}"


def _progress(status: Mapping[str, Any], done: int) -> dict[str, float] | None:
    try:
        fraction = min(1.0, status.get("step", 0) / status.get("steps", 1))
        return {"done": round(done + fraction, 3), "total": int(status["images"])}
    except (LookupError, TypeError, ValueError, ArithmeticError):
        return None


def _labels(request: DrawRequest | None, name: str) -> list[str]:
    """Return the labels of columns or rows; empty ones if nothing varies along them."""
    if request is None:
        return []
    axis = getattr(request, name)
    if axis is not None:
        return [printable(label) for label in axis.labels]
    if request.x is not None or request.y is not None:
        return [""]
    return [""] * (COLUMNS if name == "x" else -(-request.count // COLUMNS))


def _facts(request: DrawRequest) -> list[tuple[str, str]]:
    settings = request.settings
    found = [
        ("Model", printable(settings.model)),
        ("Seed", str(settings.seed)),
        ("Steps", str(settings.steps)),
        ("Guidance", f"{settings.guidance:g}"),
        ("Sampler", settings.sampler),
    ]
    if settings.guidance_rescale is not None:
        found.insert(4, ("Guidance rescale", f"{settings.guidance_rescale:g}"))
    if settings.negative:
        found.insert(0, ("Negative prompt", settings.negative))
    if request.clip_skip is not None:
        found.append(("Clip skip", str(request.clip_skip)))
    for path, strength in request.hypernetworks:
        found.append(("Hypernetwork", f"{printable(PurePath(path).stem)} at {strength:g}"))
    return found
