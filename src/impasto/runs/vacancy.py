"""Whether a place is free for a new run directory."""

from __future__ import annotations

from pathlib import Path

from impasto import locks, temporary_names
from impasto.errors import RunError
from impasto.invocation import command


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
        f"{path} is already there and not empty; nothing in it was touched. Choose another "
        f"output_dir, delete it, or continue it with: {command('resume', path)}"
    )
