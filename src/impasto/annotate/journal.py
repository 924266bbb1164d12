"""Records what a command changes before each change, so that `undo` can restore every byte.

A journal is a file of JSON lines, each with its own checksum: the command, then for each file its
previous content and hash and the hash of the new content, completed images, and the end. If the end
is missing, the same command continues with the remaining images. Journals of earlier versions,
which had absolute paths, can be read too. `undoing.py` undoes them.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

from impasto import files, storage_errors, temporary_names
from impasto.annotate.dataset_folders import METADATA, DatasetFile, DatasetFolders
from impasto.annotate.notes import (
    NUMBERED,
    Edit,
    Notes,
    edit_name,
    file_hash,
    hash_of,
    journals_in,
    read_notes,
    with_checksum,
)
from impasto.data.folders.beside import has_text
from impasto.errors import RunError, StorageError
from impasto.lock_file import LockHolder
from impasto.locks import FolderLock

_FORMAT = 2

LAST_NUMBER = "last-number"
"""A file beside the journals with the last number assigned, so that `undo 7` always refers to the
same change, even after the journal with number 7 was undone and removed."""


class Journal:
    """The journal of one command; only one command at a time may change captions of a dataset.

    Args:
        folders: The dataset, or the folder of its journals.
        command: The command as canonical text; an unfinished journal with the same text is
            continued.
    """

    def __init__(self, folders: DatasetFolders | Path, command: str) -> None:
        self.folders = (
            folders if isinstance(folders, DatasetFolders) else DatasetFolders.around(folders)
        )
        self.command = command
        self.done: set[str] = set()
        self._held = contextlib.ExitStack()
        self._path: Path | None = None
        self._file: Any = None
        self._last: dict[DatasetFile, str] = {}
        self._tidied: set[Path] = set()

    @property
    def name(self) -> str | None:
        """The name of this change for undo; None until something was recorded."""
        return None if self._path is None else edit_name(self._path)

    def __enter__(self) -> Journal:
        self._held.enter_context(alone(self.folders))
        newest = _newest_of(self.folders)
        if newest is not None:
            self._continue(*newest)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._held:
            if self._path is None:
                return  # nothing was recorded
            try:
                if kind is None:
                    self._note({"end": True})  # also if continued with no images left
            finally:
                if self._file is not None:
                    with contextlib.suppress(OSError):  # the end was flushed, or failed above
                        self._file.close()
            if kind is None and not self._last:
                self._path.unlink(missing_ok=True)  # nothing to undo

    def write(self, path: Path, text: str, image: str) -> None:
        """Record the present content, then write a text with a line end.

        Raises:
            RunError: The file is outside of the dataset.
            StorageError: It could not be written.
        """
        self.replace(path, (text + "\n").encode(), [image])

    def replace(self, path: Path, content: bytes, images: Sequence[str]) -> None:
        """Record the present content, then write bytes: an image's caption, or a metadata file.

        The record of the change names the images, so that a command that appends, and is killed
        right after the write, does not append to them again.
        """
        spot = self.folders.file_below(path)
        if spot is None:
            raise RunError(f"{path} is outside of the dataset; nothing is written there.")
        real = files.real_path(path)
        before = real.read_bytes() if real.is_file() else None
        if before == content:
            self._finish_all(images)
            return
        was, after = hash_of(before), hashlib.sha256(content).hexdigest()
        note: dict[str, Any] = {"root": spot.root, "file": spot.file, "was": was, "after": after}
        note["images"] = list(images)
        if before is not None and self._last.get(spot) != was:
            note["before"] = base64.b64encode(before).decode("ascii")
        self._note(note)
        self._last[spot] = after
        if real.parent not in self._tidied:
            tidy(real.parent)
            self._tidied.add(real.parent)
        with files.rewrite_file(path) as partial:
            partial.write_bytes(content)
        self._finish_all(images)

    def _finish_all(self, images: Sequence[str]) -> None:
        for image in images:
            self.finish(image)

    def finish(self, image: str) -> None:
        """Record that an image is completed; if that is lost, the image is processed again."""
        self._note({"image": image}, durably=False)

    def _continue(self, newest: Path, notes: Notes) -> None:
        """Continue the newest journal, if it is of this command and was interrupted."""
        done = _done_before(notes, self.command, self.folders)
        if done is None:
            return
        self.done = done
        self._last = {e.spot: e.after for e in notes.edits if isinstance(e.spot, DatasetFile)}
        self._path = newest
        _cut_half_line(newest)

    def _note(self, line: Mapping[str, Any], *, durably: bool = True) -> None:
        try:
            if self._file is None:
                self._open()
            self._file.write(with_checksum(line))
            self._file.flush()
            if durably:
                os.fsync(self._file.fileno())
        except OSError as error:
            raise StorageError(
                f"The notes for undo cannot be written to {self.folders.journals}: "
                f"{storage_errors.cause_of(error)}. Captions written so far are kept. Free some "
                f"space and run the same command again."
            ) from error

    def _open(self) -> None:
        """Create the file at the first record, so that a command without any leaves none."""
        if self._path is not None:
            self._file = self._path.open("a", encoding="ascii", newline="\n")
            return
        files.require_writable(self.folders.journals)
        numbers = [
            int(m[1]) for p in journals_in(self.folders.journals) if (m := NUMBERED.match(p.name))
        ]
        number = 1 + max([_last_number(self.folders.journals), *numbers])
        files.write_text(self.folders.journals / LAST_NUMBER, f"{number}\n", durable=False)
        self._path = self.folders.journals / f"edit-{number:06d}.jsonl"
        self._file = self._path.open("x", encoding="ascii", newline="\n")
        begin: dict[str, Any] = {"format": _FORMAT, "begin": self.command, "at": int(time.time())}
        if not self._is_within():
            begin["folders"] = root_paths(self.folders)
        self._file.write(with_checksum(begin))

    def _is_within(self) -> bool:
        return any(files.is_inside(self.folders.journals, root) for root in self.folders.roots)


def done_before(folders: DatasetFolders, command: str) -> frozenset[str]:
    """Return the images that a command would skip since an interrupted run completed them."""
    newest = _newest_of(folders)
    done = None if newest is None else _done_before(newest[1], command, folders)
    return frozenset(done or ())


def _done_before(notes: Notes, command: str, folders: DatasetFolders) -> set[str] | None:
    """Return the completed images if the journal is of this command and unfinished, else None."""
    if notes.ended or notes.damaged or notes.command != command:
        return None
    try:
        return _still_done(notes, folders)
    except RunError:
        return None  # its journal is not of this dataset


def _newest_of(folders: DatasetFolders) -> tuple[Path, Notes] | None:
    """Return a dataset's last journal in the present format; None if it has none.

    Other datasets may keep journals in the same folder.
    """
    for journal in reversed(journals_in(folders.journals)):
        if not NUMBERED.match(journal.name):
            return None
        notes = read_notes(journal)
        if belongs(notes, folders, moved=False):
            return journal, notes
    return None


def belongs(notes: Notes, folders: DatasetFolders, *, moved: bool = True) -> bool:
    """Return whether a journal is of this dataset, if several keep theirs in one folder.

    Args:
        notes: The content of the journal.
        folders: The dataset.
        moved: Whether to accept one whose folders no longer exist: the dataset may have been moved.
    """
    if notes.folders is not None:
        gone = not any(os.path.exists(folder) for folder in notes.folders)  # noqa: PTH110 - of any length
        return notes.folders == root_paths(folders) or (moved and gone)
    if any(files.is_inside(folders.journals, root) for root in folders.roots):
        return True
    return any(not isinstance(e.spot, Path) or folders.file_below(e.spot) for e in notes.edits)


def _last_number(journals: Path) -> int:
    """Return the last number assigned; 0 if none is recorded."""
    try:
        text = (journals / LAST_NUMBER).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return 0
    return int(text) if text.isdecimal() and len(text) < 10 else 0


def tidy(folder: Path) -> None:
    """Remove temporary files that killed commands left in a folder of a dataset."""
    with contextlib.suppress(OSError):  # leftovers do no harm
        temporary_names.remove_leftovers(folder)


@contextlib.contextmanager
def alone(folders: DatasetFolders) -> Iterator[None]:
    """Lock the journals of a dataset, so that no second command changes captions meanwhile.

    Raises:
        RunError: Another command holds the lock, or a link leads the journals out of the dataset.
        StorageError: The folder cannot be written.
    """
    folders.require_own_journals()
    files.require_writable(folders.journals)

    def refuse(holder: LockHolder) -> None:
        raise RunError(
            f"Another command is changing captions of this dataset: {holder.description}. It holds "
            f"{folders.journals}. Wait until it has finished."
        )

    with FolderLock(folders.journals, "changing captions", refuse):
        yield


def root_paths(folders: DatasetFolders) -> list[str]:
    """Return the dataset's folders as they are recorded in a journal that is kept elsewhere."""
    return [files.real_path(root).as_posix() for root in folders.roots]


def _still_done(notes: Notes, folders: DatasetFolders) -> set[str]:
    """Return the completed images, except those whose captions were removed since.

    Raises:
        RunError: The journal is of files outside of the dataset.
    """
    spots = {edit.spot for edit in notes.edits if isinstance(edit.spot, DatasetFile)}
    gone = {spot for spot in spots if not has_text(folders.file_of(spot))}
    if any(PurePosixPath(spot.file).suffix.lower() in METADATA for spot in gone):
        return set()
    stems = {f"{spot.root}:{spot.file.rpartition('.')[0]}" for spot in gone}
    done = notes.done | _written(notes, folders)
    return {image for image in done if image.rpartition(".")[0] not in stems}


def _written(notes: Notes, folders: DatasetFolders) -> set[str]:
    """Return the images whose text is in their files by hash, though its record may have been lost.

    A record precedes its change, so the last change of each file may not have happened.
    """
    chains: dict[DatasetFile, list[Edit]] = {}
    for edit in notes.edits:
        if isinstance(edit.spot, DatasetFile):
            chains.setdefault(edit.spot, []).append(edit)
    found: set[str] = set()
    for spot, chain in chains.items():
        now = file_hash(folders.file_of(spot))
        reached = max((n for n, edit in enumerate(chain, start=1) if edit.after == now), default=0)
        found.update(name for edit in chain[:reached] for name in edit.images)
    return found


def _cut_half_line(file: Path) -> None:
    """Truncate an incomplete last line that a crash left, so that the next starts a new line."""
    content = file.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(file, whole)
