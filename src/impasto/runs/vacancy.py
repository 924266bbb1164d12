"""Whether a place is free for a new run directory."""

from __future__ import annotations

from pathlib import Path

from impasto import locks, temporary_names
from impasto.errors import RunError
from impasto.parsing import read_object
from impasto.runs.given_code import how_to_resume


def require_empty(path: Path) -> None:
    """Make sure that nobody's files are in the way; what a killed process left is none.

    Raises:
        RunError: Something is already there.
    """
    try:
        entries = list(path.iterdir()) if path.is_dir() else [path] if path.exists() else []
    except OSError:
        return  # whoever writes there meets the same fault and reports it
    leftovers = temporary_names.partial_files_in(path)
    if all(entry in leftovers or locks.is_of_locks(entry) for entry in entries):
        return
    raise RunError(
        f"{path} is already there and not empty; nothing in it was touched. {_loss_text(path)}"
        f"Choose another output_dir, delete it, or continue it with: {how_to_resume(path, path)}"
    )


def _loss_text(path: Path) -> str:
    """What deleting a run would lose, as a sentence and a space where that is no training."""
    is_run = (path / "config.toml").is_file() and (path / "status.json").is_file()
    has_more = any((path / name).exists() for name in ("states", "averages", "export"))
    if not is_run or has_more or (read_object(path / "status.json") or {}).get("model"):
        return ""
    return "This run ended before its first state was saved: deleting it loses no training. "
