"""Takes back what a command wrote: everything is checked first, then each file restored.

Any command can be taken back, not the last alone: for those files that no later one and no person
has changed since.

Nothing is touched that is not in the dataset, nor, unless asked, what somebody changed since. The
journal stays until all of it is taken back, so a fault half-way (a full disk, a folder that moved)
costs nothing but running it again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from impasto import files
from impasto.annotate.dataset_folders import DatasetFile, DatasetFolders
from impasto.annotate.journal import alone, belongs, tidy
from impasto.annotate.notes import (
    Edit,
    Notes,
    edit_name,
    file_hash,
    journals_in,
    read_notes,
    with_checksum,
)
from impasto.errors import RunError, StorageError


@dataclass(frozen=True)
class UndoResult:
    """What undoing a journal did.

    Attributes:
        restored: Files that are as they were.
        unchanged: Files that were left as they are, with the reasons.
        blocked: How many of those a later change wrote, which has to be taken back first.
    """

    restored: int
    unchanged: tuple[tuple[Path, str], ...]
    blocked: int = 0


@dataclass(frozen=True)
class _Step:
    """What undoing does to one file."""

    path: Path
    content: bytes | None = None
    writes: bool = False
    unchanged: str = ""
    blocked: bool = False


def undo(
    folders: DatasetFolders | Path,
    edit: str | None = None,
    *,
    force: bool = False,
    keep: bool = False,
) -> UndoResult:
    """Take a journal back, the newest if none is named; it is gone once nothing of it is left.

    Args:
        folders: The dataset; a folder of notes stands for the one that it is in.
        edit: The name of the change (`EditSummary.name`). Of an older one, files that a later one
            wrote are left alone, with `force` too.
        force: Also restore files that were changed since.
        keep: Leave files that were changed since, and be done with this journal.

    Raises:
        RunError: There is nothing to take back, or not this change; its notes are damaged, or they
            lead out of the dataset. Nothing was touched.
        StorageError: Files could not be written; the others are restored, and running it again
            goes on.
    """
    folders = folders if isinstance(folders, DatasetFolders) else DatasetFolders.around(folders)
    folders.require_own_journals()
    if not journals_in(folders.journals):
        raise _nothing(folders)
    with alone(folders):
        journal, notes = _newest(folders) if edit is None else _named(folders, edit)
        if notes.damaged and not force:
            raise RunError(
                f"The notes in {journal} are damaged (line {notes.damaged[0]}). Nothing was "
                f"touched. --force restores what the other {len(notes.edits)} notes say."
            )
        later = _later_chains(folders, journal)
        steps = [
            _blocked(path, later) or _step(path, chain, force=force)
            for path, chain in _chains(notes, folders).items()
        ]
        faults = _apply(steps)
        left = tuple((step.path, step.unchanged) for step in steps if step.unchanged)
        if faults:
            _mark(journal)
            raise StorageError(
                f"{len(faults)} of {len(steps)} files could not be restored; the first is "
                f"{faults[0]} Run it again once that is fixed: the notes are kept."
            )
        if left and not keep:
            _mark(journal)
        else:
            journal.unlink(missing_ok=True)
    return UndoResult(len(steps) - len(left), left, sum(step.blocked for step in steps))


def _newest(folders: DatasetFolders) -> tuple[Path, Notes]:
    """The last journal of this dataset that changed anything; empty ones after it are removed.

    Raises:
        RunError: There is none.
    """
    for journal in reversed(journals_in(folders.journals)):
        notes = read_notes(journal)
        if not belongs(notes, folders):
            continue
        if notes.edits or notes.damaged:
            return journal, notes
        journal.unlink(missing_ok=True)
    raise _nothing(folders)


def _named(folders: DatasetFolders, edit: str) -> tuple[Path, Notes]:
    """The journal of a change.

    Raises:
        RunError: There is none of that name.
    """
    for journal in journals_in(folders.journals):
        if edit_name(journal) == edit:
            notes = read_notes(journal)
            if belongs(notes, folders):
                return journal, notes
    raise RunError(
        f"There is no edit {edit} of this dataset in {folders.journals}: it was taken back, or "
        f"never made. --list shows those that are there. Nothing was touched."
    )


_Chain = tuple[str, Sequence[Edit]]
"""The name of a change, and what it did to a file."""


def _later_chains(folders: DatasetFolders, journal: Path) -> dict[Path, list[_Chain]]:
    """For each file what was done to it after a journal, the newest first."""
    there = journals_in(folders.journals)
    found: dict[Path, list[_Chain]] = {}
    for later in reversed(there[there.index(journal) + 1 :]):
        notes = read_notes(later)
        if not belongs(notes, folders):
            continue
        with contextlib.suppress(RunError):  # its files are none of this dataset
            for path, chain in _chains(notes, folders).items():
                found.setdefault(path, []).append((edit_name(later), chain))
    return found


def _blocked(path: Path, later: Mapping[Path, Sequence[_Chain]]) -> _Step | None:
    """Leave a file alone that a later change is noted of; None where there is none.

    A later change that was taken back in part may still have notes of a file that it has restored.
    """
    chains = later.get(path, ())
    now = file_hash(path) if chains else None
    for name, chain in chains:
        if now != chain[0].was:
            since = "" if now == chain[-1].after else ", and it was changed since"
            reason = f"edit {name} changed it later{since}; undo that one first"
            return _Step(path, unchanged=reason, blocked=True)
    return None


def _chains(notes: Notes, folders: DatasetFolders) -> dict[Path, list[Edit]]:
    """The edits of each file, in order.

    Raises:
        RunError: One is of a file that undo does not touch.
    """
    chains: dict[Path, list[Edit]] = {}
    for edit in notes.edits:
        spot = edit.spot if isinstance(edit.spot, DatasetFile) else _of_old(edit.spot, folders)
        chains.setdefault(folders.file_of(spot), []).append(edit)
    return chains


def _of_old(path: Path, folders: DatasetFolders) -> DatasetFile:
    """The spot of an absolute path.

    Raises:
        RunError: It is outside of the dataset.
    """
    usable = path.is_absolute() and "\0" not in str(path)
    spot = folders.file_below(path) if usable else None
    if spot is None:
        raise RunError(
            f"The notes in {folders.journals} name {str(path)[:200]}, which is outside of the "
            f"dataset. Nothing was touched. If the folder of images was moved since, move it back "
            f"for this (or name the metadata file with --metadata); if the notes came with "
            f"somebody else's dataset, delete them."
        )
    return spot


def _step(path: Path, chain: Sequence[Edit], *, force: bool) -> _Step:
    """What becomes of a file, going back edit by edit as long as each is what the file shows."""
    if files.real_path(path) != path or (os.path.lexists(path) and not os.path.isfile(path)):  # noqa: PTH113 - a path of any length
        return _Step(path, unchanged="it is a link or no file now")
    found = at = file_hash(path)
    left, reached = len(chain), len(chain)
    while left:
        edit = chain[left - 1]
        if edit.after and at == edit.after:
            at, reached = edit.was, left - 1
        elif at != edit.was:
            break
        left -= 1
    if force:
        left = reached = 0
        at = chain[0].was
    reason = ""
    if left:
        reason = "it was changed since" if found is not None else "it is not there any more"
    if at == found:
        return _Step(path, unchanged=reason)
    content = chain[reached].content
    if at is not None and content is None:
        return _Step(path, unchanged="its notes are damaged")
    return _Step(path, content, writes=True, unchanged=reason)


def _apply(steps: Sequence[_Step]) -> list[str]:
    """Restore what can be restored; what went wrong, in words."""
    faults = []
    for folder in {step.path.parent for step in steps}:
        tidy(folder)
    for step in steps:
        if not step.writes:
            continue
        try:
            if step.content is None:
                step.path.unlink(missing_ok=True)
            else:
                with files.replace_file(step.path) as partial:
                    partial.write_bytes(step.content)
        except StorageError as error:
            faults.append(str(error))
        except OSError as error:
            faults.append(f"{step.path} ({error.strerror or error}).")
    return faults


def _mark(journal: Path) -> None:
    """Note that a journal is taken back in part, so that its command is not continued."""
    with contextlib.suppress(OSError), journal.open("a", encoding="ascii", newline="\n") as file:
        file.write(with_checksum({"undone": True}))


def _nothing(folders: DatasetFolders) -> RunError:
    named = " or into a metadata file" if folders.named is None else ""
    return RunError(
        f"There is nothing to undo in {folders.journals}: no words were written from here{named}."
    )
