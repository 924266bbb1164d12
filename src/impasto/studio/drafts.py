"""Runs that are being thought of: what was typed into the form of a new run, kept on the disk.

fields.json    the text of each field, as it was typed
about.json     what the draft was made for, and which task works for it
imported.toml  settings that a task writes for it: for a goal, or from an old command
settings.toml  what `impasto train --plan` is given
plan.log       what that prints; there once the process has taken the settings up
events.jsonl   which stages that process tells of
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impasto import files, storage_errors, temporary_names
from impasto.errors import StorageError
from impasto.parsing import read_object
from impasto.runs.tasks import TaskDirectory

KEPT = 50
"""Drafts that are kept: those that were changed last."""


@dataclass(frozen=True)
class Draft:
    """The files of one draft.

    Attributes:
        path: Its directory.
    """

    path: Path

    @property
    def name(self) -> str:
        """The name of the draft in addresses."""
        return self.path.name

    @property
    def imported_file(self) -> Path:
        """Settings that a task has written for it."""
        return self.path / "imported.toml"

    @property
    def settings_file(self) -> Path:
        """The settings whose plan is shown."""
        return self.path / "settings.toml"

    @property
    def plan_log(self) -> Path:
        """What the process that plans has printed."""
        return self.path / "plan.log"

    @property
    def events_file(self) -> Path:
        """Which stages the process that plans tells of."""
        return TaskDirectory(self.path).events_file

    def fields(self) -> dict[str, str]:
        """What was typed, by field."""
        found = self._read("fields.json")
        return {name: text for name, text in found.items() if isinstance(text, str)}

    def keep_fields(self, fields: Mapping[str, str]) -> None:
        """Keep what was typed.

        Raises:
            StorageError: The folder cannot be written.
        """
        files.write_json(self.path / "fields.json", dict(fields), durable=False)

    def about(self) -> dict[str, Any]:
        """What it was made for."""
        return self._read("about.json")

    def note(self, **details: Any) -> None:
        """Record a note on this draft.

        Raises:
            StorageError: The folder cannot be written.
        """
        files.write_json(self.path / "about.json", {**self.about(), **details}, durable=False)

    def _read(self, name: str) -> dict[str, Any]:
        return read_object(self.path / name) or {}


@dataclass(frozen=True)
class Drafts:
    """The drafts of a folder.

    Attributes:
        folder: Where their directories are; made when it is first needed.
    """

    folder: Path

    def create(self, fields: Mapping[str, str] | None = None, **details: Any) -> Draft:
        """Begin the draft of a new run, in a directory of its own.

        Args:
            fields: The text of its fields; None where a task is to find them.
            details: What it is made for.

        Raises:
            StorageError: The folder cannot be written.
        """
        self._tidy()
        with storage_errors.reported(self.folder):
            draft = Draft(temporary_names.new_dated_folder(self.folder))
        try:
            draft.note(**details)
            if fields is not None:
                draft.keep_fields(fields)
        except StorageError:
            with contextlib.suppress(OSError):
                files.remove_folder(draft.path)
            raise
        return draft

    def find(self, name: str) -> Draft | None:
        """The draft of a name; None where there is none."""
        draft = Draft(self.folder / name)
        return draft if temporary_names.is_dated_name(name) and draft.path.is_dir() else None

    def _tidy(self) -> None:
        with contextlib.suppress(OSError):
            known = [
                path for path in self.folder.iterdir() if temporary_names.is_dated_name(path.name)
            ]
            known.sort(key=lambda path: path.stat().st_mtime, reverse=True)
            for path in known[KEPT:]:
                files.remove_folder(path)
