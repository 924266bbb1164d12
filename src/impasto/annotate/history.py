"""Lists the changes to captions of a dataset that can be undone, for users and programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impasto.annotate.dataset_folders import DatasetFile, DatasetFolders
from impasto.annotate.journal import belongs
from impasto.annotate.notes import Notes, edit_name, journals_in, read_notes
from impasto.parsing import parse_json, printable

_UNKNOWN = "a change of an earlier version"
_SHOWN = 200
_NAMED = 3


@dataclass(frozen=True)
class EditSummary:
    """A change that can be undone.

    Attributes:
        name: Its name for `undo`.
        what: A short description.
        at: When it started, in seconds since 1970; None if that is not recorded.
        files: The number of files that it wrote.
        first: Up to three of these files, by their paths below the dataset.
        ended: Whether it was completed.
        outside: The metadata file that it wrote, if undo must be given its path; else empty.
        damaged: Whether its journal has damaged lines.
    """

    name: str
    what: str
    at: int | None
    files: int
    first: tuple[str, ...]
    ended: bool
    outside: str
    damaged: bool

    def as_json(self) -> Mapping[str, Any]:
        """Return the fields as plain values, for JSON."""
        return dict(vars(self))


def list_edits(folders: DatasetFolders) -> list[EditSummary]:
    """Return the changes of a dataset, the newest first.

    Raises:
        RunError: The journals are outside of the dataset by a link, or cannot be read.
    """
    folders.require_own_journals()
    found = ((path, read_notes(path)) for path in reversed(journals_in(folders.journals)))
    return [
        _summary(path, notes)
        for path, notes in found
        if (notes.edits or notes.damaged) and belongs(notes, folders)
    ]


def _summary(path: Path, notes: Notes) -> EditSummary:
    spots = {edit.spot for edit in notes.edits}
    named = [s.file for s in spots if isinstance(s, DatasetFile) and s.root < 0]
    return EditSummary(
        edit_name(path),
        _what(notes.command),
        notes.at,
        len(spots),
        tuple(sorted(_name_of(spot) for spot in spots)[:_NAMED]),
        notes.ended,
        named[0] if named else "",
        bool(notes.damaged),
    )


def _name_of(spot: DatasetFile | Path) -> str:
    """Return a file's path for display; without its folder if an earlier version recorded it."""
    name = spot.file if isinstance(spot, DatasetFile) else spot.name
    return printable(name)


def _what(command: str) -> str:
    """Return a short description of a journal's command, of any format."""
    try:
        noted = parse_json(command, halves=True)
    except ValueError:
        return command[:_SHOWN] or _UNKNOWN
    while isinstance(noted, list) and noted and isinstance(noted[0], list):
        noted = noted[0]  # tag and caption record their options as well
    if not isinstance(noted, list) or not noted:
        return command[:_SHOWN]
    texts = [str(item) for item in noted[:2] if isinstance(item, str)]
    return (texts[1] if texts[:1] == ["edit"] and len(texts) > 1 else " with ".join(texts))[:_SHOWN]
