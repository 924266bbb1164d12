"""Parts that a run was given in code (`Overrides`), which no command can supply again."""

from __future__ import annotations

from pathlib import Path

from impasto.invocation import command
from impasto.parsing import read_object
from impasto.runs.schema import CHANGED_SETTINGS, CODE, fault_in


def given_in_code(folder: Path) -> list[str]:
    """Return the names of the parts that a run was given in code; empty if none are recorded."""
    said = read_object(folder / CHANGED_SETTINGS) or {}
    return [] if fault_in(said, CHANGED_SETTINGS) else list(said.get(CODE, []))


def how_to_resume(folder: Path | None, address: object) -> str:
    """Return the command that resumes a run, or the call in Python if it was given parts in code.

    Args:
        folder: The run directory on this machine; None if there is none.
        address: The run's path or URL, for display.
    """
    names = [] if folder is None else given_in_code(folder)
    if not names:
        return command("resume", address)
    return (
        f"impasto.resume({str(address)!r}, overrides=...) in Python, with the same parts in code "
        f"as before ({', '.join(names)})"
    )
