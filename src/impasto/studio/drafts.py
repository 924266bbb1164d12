"""Drafts of new runs: the contents of the form "New run", stored on disk.

fields.json    the text of each field, as it was typed
about.json     the purpose of the draft, and the name of its task
imported.toml  settings that a task writes for the draft: for a goal, or from an sd-scripts command
settings.toml  the input of `impasto train --plan`
plan.log       the output of that command; exists once its process has read the settings
events.jsonl   the stages that this process reports
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
"""Number of drafts that are kept, those that were changed last."""


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
        """The settings that a task has written for the draft."""
        return self.path / "imported.toml"

    @property
    def settings_file(self) -> Path:
        """The settings that the shown plan is made from."""
        return self.path / "settings.toml"

    @property
    def plan_log(self) -> Path:
        """The output of the process that makes the plan."""
        return self.path / "plan.log"

    @property
    def events_file(self) -> Path:
        """The stages that the process that makes the plan reports."""
        return TaskDirectory(self.path).events_file

    def fields(self) -> dict[str, str]:
        """Return the typed text of each field, by the name of the field."""
        found = self._read("fields.json")
        return {name: text for name, text in found.items() if isinstance(text, str)}

    def keep_fields(self, fields: Mapping[str, str]) -> None:
        """Store the typed text of each field.

        Raises:
            StorageError: The folder cannot be written.
        """
        files.write_json(self.path / "fields.json", dict(fields), durable=False)

    def about(self) -> dict[str, Any]:
        """Return the recorded purpose of the draft and the name of its task, or an empty dict."""
        return self._read("about.json")

    def note(self, **details: Any) -> None:
        """Add details to the record of the draft's purpose.

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
        folder: The folder of the draft directories; created when first needed.
    """

    folder: Path

    def create(self, fields: Mapping[str, str] | None = None, **details: Any) -> Draft:
        """Create the draft of a new run, in a new directory.

        Args:
            fields: The text of its fields; None if a task will write the settings.
            details: The purpose of the draft, as recorded in `about.json`.

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
        """Return the draft with this name, or None if it does not exist."""
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
