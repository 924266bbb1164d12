"""Undoes what a command wrote: everything is checked first, then each file is restored.

Any command can be undone, not only the last: for those of its files that have not been changed
since, by a later command or by hand.

Only files in the dataset are changed, and files that were changed since only on request. The
journal is kept until all of it is undone, so after an error half-way (a full disk, a folder that
was moved) it is enough to run undo again.
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
    """The result of undoing a journal.

    Attributes:
        restored: The number of files restored.
        unchanged: Files that were left unchanged, with the reasons.
        blocked: How many of those a later change wrote, which must be undone first.
    """

    restored: int
    unchanged: tuple[tuple[Path, str], ...]
    blocked: int = 0


@dataclass(frozen=True)
class _Step:
    """The planned effect of undo on one file."""

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
    """Undo a change, the newest if none is named; its journal is removed once all of it is undone.

    Args:
        folders: The dataset, or the folder of its journals.
        edit: The name of the change (`EditSummary.name`). For an older one, files that a later
            change wrote are left unchanged, even with `force`.
        force: Also restore files that were changed since.
        keep: Leave files that were changed since, and remove the journal even so.

    Raises:
        RunError: There is nothing to undo, or no such change; its journal is damaged, or leads out
            of the dataset. Nothing was changed.
        StorageError: Files could not be written; the others are restored, and running it again
            continues.
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
                f"changed. --force restores the files of the other {len(notes.edits)} notes."
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
                f"{faults[0]} Run undo again once that is fixed: the notes are kept."
            )
        if left and not keep:
            _mark(journal)
        else:
            journal.unlink(missing_ok=True)
    return UndoResult(len(steps) - len(left), left, sum(step.blocked for step in steps))


def _newest(folders: DatasetFolders) -> tuple[Path, Notes]:
    """Return the dataset's last journal that changed anything, and remove empty ones after it.

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
    """Return the journal of the named change.

    Raises:
        RunError: There is none of that name.
    """
    for journal in journals_in(folders.journals):
        if edit_name(journal) == edit:
            notes = read_notes(journal)
            if belongs(notes, folders):
                return journal, notes
    raise RunError(
        f"There is no edit {edit} of this dataset in {folders.journals}: it was undone, or "
        f"never made. --list shows the edits that can be undone. Nothing was changed."
    )


_Chain = tuple[str, Sequence[Edit]]
"""The name of a change, and its edits of a file."""


def _later_chains(folders: DatasetFolders, journal: Path) -> dict[Path, list[_Chain]]:
    """Return for each file the changes after a journal, the newest first."""
    there = journals_in(folders.journals)
    found: dict[Path, list[_Chain]] = {}
    for later in reversed(there[there.index(journal) + 1 :]):
        notes = read_notes(later)
        if not belongs(notes, folders):
            continue
        with contextlib.suppress(RunError):  # its files are not in this dataset
            for path, chain in _chains(notes, folders).items():
                found.setdefault(path, []).append((edit_name(later), chain))
    return found


def _blocked(path: Path, later: Mapping[Path, Sequence[_Chain]]) -> _Step | None:
    """Return a step that leaves a file unchanged if a later change wrote it, else None.

    A later change that was undone in part may still have records of a file that it has restored.
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
    """Return the edits of each file, in order.

    Raises:
        RunError: One is of a file that undo must not change.
    """
    chains: dict[Path, list[Edit]] = {}
    for edit in notes.edits:
        spot = edit.spot if isinstance(edit.spot, DatasetFile) else _of_old(edit.spot, folders)
        chains.setdefault(folders.file_of(spot), []).append(edit)
    return chains


def _of_old(path: Path, folders: DatasetFolders) -> DatasetFile:
    """Return the dataset file of an absolute path.

    Raises:
        RunError: It is outside of the dataset.
    """
    usable = path.is_absolute() and "\0" not in str(path)
    spot = folders.file_below(path) if usable else None
    if spot is None:
        raise RunError(
            f"The notes in {folders.journals} name {str(path)[:200]}, which is outside of the "
            f"dataset. Nothing was changed. If the folder of images was moved since, move it back "
            f"for this (or give the metadata file with --metadata); if the notes came with "
            f"another person's dataset, delete them."
        )
    return spot


def _step(path: Path, chain: Sequence[Edit], *, force: bool) -> _Step:
    """Plan the undo of one file: go back edit by edit as long as the file's hash matches."""
    if files.real_path(path) != path or (os.path.lexists(path) and not os.path.isfile(path)):  # noqa: PTH113 - a path of any length
        return _Step(path, unchanged="it is now a link or not a file")
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
        reason = "it was changed since" if found is not None else "it no longer exists"
    if at == found:
        return _Step(path, unchanged=reason)
    content = chain[reached].content
    if at is not None and content is None:
        return _Step(path, unchanged="its notes are damaged")
    return _Step(path, content, writes=True, unchanged=reason)


def _apply(steps: Sequence[_Step]) -> list[str]:
    """Restore the files that can be restored; return error messages for the others."""
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
    """Record that a journal was undone in part, so that its command is not continued."""
    with contextlib.suppress(OSError), journal.open("a", encoding="ascii", newline="\n") as file:
        file.write(with_checksum({"undone": True}))


def _nothing(folders: DatasetFolders) -> RunError:
    named = (
        " For edits of a metadata file elsewhere, give --metadata." if folders.named is None else ""
    )
    return RunError(
        f"There is nothing to undo in {folders.journals}: no edits of captions "
        f"are recorded there.{named}"
    )
