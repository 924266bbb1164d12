"""What runs of earlier versions did where they say nothing of a setting that came later.

The settings of a run are written into its directory with all defaults. One that is missing there is
newer than the run, which goes on as it began.
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
"""Path -> what such a run did, where that is not the default now."""


def with_former_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run that was begun, with those that it does not name as they were then."""
    tree = {key: dict(v) if isinstance(v, Mapping) else v for key, v in values.items()}
    for path, value in FORMER_VALUES.items():
        section, _, name = path.partition(".")
        own = tree.setdefault(section, {})
        if isinstance(own, dict):
            own.setdefault(name, value)
    return tree
