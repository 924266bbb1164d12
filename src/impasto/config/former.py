"""Behaviour of runs from earlier versions for settings that were added later.

A run writes its settings into its directory with all defaults. A setting that is missing there was
added after the run started, and the run continues as before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FORMER_VALUES: dict[str, Any] = {
    "saving.best_model": False,
    "validation.copies": "bytes",
    "validation.standard_error": 0.0,
    "validation.training_images": 0,
}
"""Path -> the value that such a run used, where it differs from today's default."""


def with_former_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of an earlier run, with missing ones at their former values."""
    tree = {key: dict(v) if isinstance(v, Mapping) else v for key, v in values.items()}
    for path, value in FORMER_VALUES.items():
        section, _, name = path.partition(".")
        own = tree.setdefault(section, {})
        if isinstance(own, dict):
            own.setdefault(name, value)
    return tree
