"""Folders named after a step, such as `step-00000042`, for states and samples."""

from __future__ import annotations

import os
import re
from pathlib import Path

_STEP_NAME = re.compile(r"step-(\d{8})", re.ASCII)


def step_name(step: int) -> str:
    """Return the name of a step's folder, such as `step-00000042`."""
    return f"step-{step:08d}"


def step_in(name: str) -> int | None:
    """Return the step in a folder's name; None for other names."""
    match = _STEP_NAME.fullmatch(name)
    return None if match is None else int(match[1])


def steps_in(folder: Path) -> list[int]:
    """Return the steps of the step folders within a folder, in ascending order."""
    try:
        names = os.listdir(folder)
    except OSError:  # missing or unreadable
        return []
    return sorted(step for step in map(step_in, names) if step is not None)
