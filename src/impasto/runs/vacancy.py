"""Checks whether a path is free for a new run directory."""

from __future__ import annotations

import os
from pathlib import Path

from impasto import locks, presence, temporary_names
from impasto.errors import RunError
from impasto.parsing import read_object
from impasto.runs.given_code import how_to_resume


def require_empty(path: Path) -> None:
    """Check that a path can become a run directory: missing, or empty except for leftovers.

    Raises:
        RunError: Something already exists there, or it cannot be a folder of this user.
    """
    _require_folder(path)
    try:
        entries = list(path.iterdir()) if path.is_dir() else [path] if path.exists() else []
    except OSError:
        return  # writing there will meet and report the same error
    leftovers = temporary_names.partial_files_in(path)
    if all(entry in leftovers or locks.is_of_locks(entry) for entry in entries):
        return
    raise RunError(
        f"{path} already exists and is not empty; nothing in it was changed. {_loss_text(path)}"
        f"Choose another output_dir, delete it, or continue it with: {how_to_resume(path, path)}"
    )


def _require_folder(path: Path) -> None:
    """Check that a path is a folder in which this user may write, or can become one."""
    nearest = next((each for each in (path, *path.parents) if presence.exists(each)), None)
    if nearest is None or presence.is_withheld(nearest):
        return  # a disk that does not answer: the writer reports it
    if not presence.is_dir(nearest):
        place = "it" if nearest == path else f"{nearest}"
        raise RunError(
            f"{path} cannot be a run directory: {place} is a file. Choose another output_dir."
        )
    if not os.access(nearest, os.W_OK):
        place = "it" if nearest == path else f"the folder {nearest}"
        raise RunError(
            f"{path} cannot be a run directory: {place} is read-only, or belongs to another user. "
            f"Choose another output_dir."
        )


def _loss_text(path: Path) -> str:
    """Return a sentence, with a space, if deleting the run would lose no training; else empty."""
    is_run = (path / "config.toml").is_file() and (path / "status.json").is_file()
    has_more = any((path / name).exists() for name in ("states", "averages", "export"))
    if not is_run or has_more or (read_object(path / "status.json") or {}).get("model"):
        return ""
    return "This run ended before its first state was saved: deleting it loses no training. "
