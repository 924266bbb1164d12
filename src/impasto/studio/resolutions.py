"""Finds the resolution at which a dataset is trained, for which its image list is made.

Without it, the list is made for 512 pixels, the default of `impasto dataset list`. For training at
another resolution this would be wrong: images would be marked as too small that are not.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from impasto import files
from impasto.config.goal_settings import bucket_sides
from impasto.errors import RunError
from impasto.parsing import parse_toml, read_object, read_text
from impasto.runs import RunDirectory
from impasto.studio.folders import Folders
from impasto.studio.models import is_diffusers, model_files

USUAL = 512
"""The resolution in pixels if neither a run nor the models define one."""

_KEYS = {
    "resolution": "resolution",
    "min_side": "min_bucket_reso",
    "max_side": "max_bucket_reso",
    "step": "bucket_reso_steps",
}
_DENOISES = "cross_attention_dim"  # a key that only the denoiser's configuration has in diffusers
_CELL = 8  # pixels per side of a latent cell, in all supported families
_SIDES = range(64, 2049)  # pixels; other values in a model's configuration are ignored
_RUNS_AT_MOST = 50


def bucket_options(folders: Folders, dataset: Path) -> dict[str, int]:
    """Return the bucket options of `impasto dataset list`, by name; empty if none are known.

    They are those of the newest run that uses the dataset. Without such a run they follow from the
    resolution of the models, if each of them states one and all agree.
    """
    for summary in folders.all_runs()[:_RUNS_AT_MOST]:
        found = _of_run(summary.run, dataset)
        if found:
            return found
    sides = {_native_side(path) for folder in folders.models for path in model_files(folder)}
    side = sides.pop() if len(sides) == 1 else None
    return {} if side is None else _of_side(side)


def _of_run(run: RunDirectory, dataset: Path) -> dict[str, int]:
    """Return the bucket options of a run, or an empty dict if it does not use the dataset."""
    try:
        given = parse_toml(read_text(run.config_file, "replace")).get("dataset")
        folder = str(run.status().get("folder") or ".")
    except (OSError, ValueError, RunError):
        return {}
    if not isinstance(given, Mapping) or not _is_dataset(given, Path(folder), dataset):
        return {}
    said = {**given, "resolution": _side_of(given.get("resolution"))}
    found = {name: said[key] for name, key in _KEYS.items() if type(said.get(key)) is int}
    return found if found.get("resolution", 0) in _SIDES else {}


def _side_of(resolution: Any) -> Any:
    """Return a resolution as the side of a square; for width and height, one of the same area."""
    match resolution:
        case [int(width), int(height)] if width in _SIDES and height in _SIDES:
            return round(math.sqrt(width * height))
    return resolution


def _is_dataset(given: Mapping[str, Any], folder: Path, dataset: Path) -> bool:
    image_dir = given.get("image_dir")
    with contextlib.suppress(OSError, ValueError):
        return isinstance(image_dir, str) and files.real_path(
            folder / image_dir
        ) == files.real_path(dataset)
    return False


def _native_side(model: Path) -> int | None:
    """Return the native resolution of a model in pixels, or None if its configuration has none."""
    configs = map(read_object, sorted(model.glob("*/config.json"))) if is_diffusers(model) else ()
    latent = next((c.get("sample_size") for c in configs if c and _DENOISES in c), None)
    side = latent * _CELL if type(latent) is int else 0
    return side if side in _SIDES else None


def _of_side(side: int) -> dict[str, int]:
    low, high, step = bucket_sides(side)
    return {"resolution": side, "min_side": low, "max_side": high, "step": step}
