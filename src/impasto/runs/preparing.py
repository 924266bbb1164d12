"""The requirements of runs that are being prepared, before their settings are in `config.toml`.

`impasto train` reads all images before it resolves the last settings and writes them, which may
take an hour. Until then no other program would know which models the run needs. So the settings are
recorded under a temporary name, which does not make the directory a run, and after a kill does not
prevent the same command from being run again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impasto import files, locks, storage_errors
from impasto.parsing import read_object
from impasto.runs.listing import walk_runs
from impasto.temporary_names import partial_files_in, partial_name

_NOTE = "preparing.json"


@dataclass(frozen=True)
class PreparedRun:
    """A run that is being prepared.

    Attributes:
        path: Its directory.
        settings: Its settings, as given.
        folder: The folder at which their relative paths start.
    """

    path: Path
    settings: Mapping[str, Any]
    folder: str


def note_preparing(path: Path, settings: Mapping[str, Any]) -> None:
    """Record the settings of a run whose directory this process has locked.

    Args:
        path: The directory.
        settings: The settings, as far as JSON can represent them.

    Raises:
        StorageError: It cannot be written.
    """
    note = partial_name(path / _NOTE)
    said = {"folder": str(Path.cwd()), "settings": settings}
    with storage_errors.reported(note):
        note.write_text(files.json_text(said), encoding="utf-8")


def forget_preparing(path: Path) -> None:
    """Remove the record: the settings are in `config.toml` now."""
    for note in _notes_in(path):
        with contextlib.suppress(OSError):
            note.unlink()


def runs_prepared(folders: Iterable[Path]) -> list[PreparedRun]:
    """Return the runs below some folders that a living process is preparing.

    Records of killed processes are ignored, since these hold no lock.
    """
    passed = (path for top in folders for path, is_run in walk_runs(top) if not is_run)
    held = [path for path in dict.fromkeys(passed) if locks.lock_holder(path) is not None]
    noted = ((path, read_object(note)) for path in held for note in _notes_in(path))
    return [
        PreparedRun(path, said["settings"], str(said.get("folder", "")))
        for path, said in noted
        if said is not None and isinstance(said.get("settings"), dict)
    ]


def _notes_in(path: Path) -> list[Path]:
    return [note for note in partial_files_in(path) if note.name.startswith(f".{_NOTE}.")]
