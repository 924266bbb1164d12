"""The types that readers of a run directory rely on in its JSON files, and a check of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CHANGED_SETTINGS = "changed-settings.json"
"""The file of a run directory that lists the settings that are not at their defaults, by path."""

CODE, CODE_IDENTITIES = "code", "code_identities"
"""Its entries for parts given in code: their names, and the identity that each is compared by on
resuming.

Earlier versions wrote only the names, and before that neither.
"""

_LARGEST = 2**53
_TEXT, _NUMBER, _WHOLE = (str,), (int, float), (int,)
_TYPES: dict[str, dict[str, Any]] = {
    "status.json": {
        "phase": _TEXT, "step": _WHOLE, "total_steps": _WHOLE, "message": _TEXT, "model": _TEXT,
        "steps_per_epoch": _WHOLE, "saved_step": _WHOLE, "updated_at": _NUMBER,
        "started_at": _NUMBER, "folder": _TEXT, "pid": _WHOLE, "process": _TEXT, "host": _TEXT,
        "stage": _TEXT, "stage_done": _WHOLE, "stage_total": _WHOLE, "stage_unit": _TEXT,
        "merged_loss": _NUMBER, "finished_step": _WHOLE,
        "loss": _NUMBER, "images_per_s": _NUMBER, "seconds_left": _NUMBER,
        "timings_s": {"": _NUMBER},
    },
    "models.json": {
        "written": [_TEXT], "earlier": [_TEXT], "mixed": {"": _NUMBER},
        "best": {"": {"step": _WHOLE, "loss": _NUMBER}},
    },
    "dataset.json": {
        "images": _WHOLE, "held_out": _WHOLE, "uncaptioned": _WHOLE, "enlarged": _WHOLE,
        "too_long": _WHOLE, "max_tokens": _WHOLE, "mean_lost_area": _NUMBER,
        "regularisation": _WHOLE, "regularisation_showings": _WHOLE,
        "buckets": {"": _WHOLE}, "set_aside": [{"path": _TEXT, "reason": _TEXT}],
        "unused": [{"path": _TEXT, "reason": _TEXT}],
    },
    CHANGED_SETTINGS: {"paths": [_TEXT], CODE: [_TEXT], CODE_IDENTITIES: {"": _TEXT}},
    "environment.json": {
        "system": _TEXT, "machine": _TEXT, "python": _TEXT, "packages": {"": _TEXT},
        "gpus": [{"name": _TEXT}],
    },
    "metrics.jsonl": {
        "step": _WHOLE, "epoch": _WHOLE, "samples_seen": _WHOLE, "loss": _NUMBER,
        "validation_loss": _NUMBER, "validation_se": _NUMBER, "validation_images": [_NUMBER],
        "training_sample_loss": _NUMBER, "grad_norm": _NUMBER,
        "validation_by": [{
            "by": _TEXT, "name": _TEXT, "images": _WHOLE, "loss": _NUMBER, "se": _NUMBER,
            "change": _NUMBER, "change_se": _NUMBER,
        }],
        "preview_kernel_distance": _NUMBER, "preview_kernel_distance_se": _NUMBER,
        "preview_similarity": _NUMBER, "preview_similarity_se": _NUMBER,
        "images_per_s": _NUMBER, "lr": _NUMBER, "time": _NUMBER,
    },
}  # fmt: skip
"""File -> entry -> its types, or those of its own entries (`""`: any) or items."""


_FORMER_NAMES = {
    "status.json": {"updates_per_epoch": "steps_per_epoch"},
    "dataset.json": {"pictures": "images"},
}
"""File -> the name of an entry in earlier versions -> its name now."""


def with_current_names(value: Any, name: str) -> Any:
    """Return a file's JSON with the entries of earlier versions under their current names.

    Args:
        value: The parsed file.
        name: The name of the file.
    """
    former = _FORMER_NAMES.get(name, {})
    if not former or not isinstance(value, Mapping):
        return value
    return {former.get(key, key): entry for key, entry in value.items()}


def fault_in(value: Any, name: str) -> str:
    """Return how a file's JSON differs from what readers rely on; empty if it does not.

    Args:
        value: The parsed file, or one line of a file of lines.
        name: The name of the file. Files that are not listed here may contain anything.
    """
    return _fault_in(value, _TYPES.get(name, {}), "")


def _fault_in(value: Any, types: Any, where: str) -> str:
    """Return how a JSON value differs from the expected types; empty if it does not."""
    if isinstance(types, tuple):
        fits = isinstance(value, types) and not isinstance(value, bool)
        if fits and isinstance(value, int):
            fits = abs(value) <= _LARGEST
        expected = "text" if types == _TEXT else "a number"
        return "" if fits else f"{where} is {type(value).__name__}, not {expected}"
    if isinstance(types, list):
        if not isinstance(value, list):
            return f"{where} is {type(value).__name__}, not a list"
        faults = (_fault_in(item, types[0], f"{where}[{n}]") for n, item in enumerate(value))
        return next(filter(None, faults), "")
    if not isinstance(value, Mapping):
        return f"{where or 'it'} is {type(value).__name__}, not an object"
    known = {**dict.fromkeys(value, types[""]), **types} if "" in types else types
    faults = (_fault_in(value[key], known[key], f"{where}.{key}") for key in value if key in known)
    return next(filter(None, faults), "")
