"""Folders that are called after a step: `step-00000042`, of states and of samples."""

from __future__ import annotations

import os
import re
from pathlib import Path

_STEP_NAME = re.compile(r"step-(\d{8})", re.ASCII)


def step_name(step: int) -> str:
    """`step-00000042`: how folders of states and samples are called."""
    return f"step-{step:08d}"


def step_in(name: str) -> int | None:
    """The step that a folder is called after; None of other names."""
    match = _STEP_NAME.fullmatch(name)
    return None if match is None else int(match[1])


def steps_in(folder: Path) -> list[int]:
    """The steps of the folders in a folder that are called after one, in ascending order."""
    try:
        names = os.listdir(folder)
    except OSError:  # it is not there, or not to be read
        return []
    return sorted(step for step in map(step_in, names) if step is not None)
