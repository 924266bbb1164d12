"""Destinations of captions and tags: files beside the images, or a metadata file."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from impasto.annotate.cleaning import lines_of
from impasto.annotate.dataset_folders import DatasetFolders
from impasto.annotate.journal import Journal
from impasto.annotate.undoing import UndoResult, undo
from impasto.data.folders.beside import SidecarLookup
from impasto.data.folders.metadata import (
    MetadataEntry,
    keep_backup,
    keys_of_files,
    metadata_text,
    read_metadata,
)
from impasto.data.records import ImageRecord
from impasto.errors import DatasetError
from impasto.parsing import read_caption_file

__all__ = [
    "Join",
    "Journal",
    "MetadataTarget",
    "Policy",
    "Sidecars",
    "UndoResult",
    "to_each_line",
    "undo",
]

Policy = Literal["overwrite", "append", "missing"]
Join = Callable[[str, str], str]
"""(existing text, new text) -> the text to write."""


def to_each_line(join: Join) -> Join:
    """Return a join that applies `join` to each existing line, since lines are alternatives."""

    def joined(before: str, new: str) -> str:
        return "\n".join(join(line, new) for line in lines_of(before)) or new

    return joined


LONGEST_TEXT = 1 << 20  # bytes of a sidecar that is appended to


@dataclass
class Sidecars:
    """Writes captions or tags into files beside the images.

    Args:
        ending: The extension of the files, such as `.txt`.
        policy: What to do with an existing file; `missing` skips images that have any caption or
            tags.
        join: How `append` joins existing and new text.
        folders: The dataset.
    """

    ending: str
    policy: Policy
    join: Join
    folders: DatasetFolders
    _owners: dict[Path, ImageRecord] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._beside = SidecarLookup(self.ending)

    def needs_caption(self, record: ImageRecord) -> bool:
        """Return whether text should be written for an image."""
        return self.policy != "missing" or not self._beside.has_caption(record)

    def fault(self, record: ImageRecord) -> str:
        """Return why no text can be written for an image; empty if it can."""
        path = self.path(record)
        reason = self.folders.why_not_written(path)
        owner = self._owners.setdefault(path, record)
        if not reason and owner.path != record.path:
            name = owner.path.name
            return f"its text would be written to {path.name}, as would that of {name}; rename one"
        if reason or self.policy != "append":
            return reason
        try:
            self.text(record, "")
        except DatasetError as error:
            return str(error)
        return ""

    def path(self, record: ImageRecord) -> Path:
        """Return the file in which an image's text is written."""
        return self._beside.file(record.path, self.ending)

    def text(self, record: ImageRecord, new: str) -> str:
        """Return the text to write for an image.

        Raises:
            DatasetError: The existing file cannot be appended to.
        """
        path = self.path(record)
        if self.policy != "append" or not path.is_file():
            return new
        if path.stat().st_size > LONGEST_TEXT:
            raise DatasetError(
                f"{path} has {path.stat().st_size >> 20} MiB, too large for captions or tags."
            )
        try:
            return self.join(read_caption_file(path).strip(), new)
        except UnicodeDecodeError as error:
            raise DatasetError(f"{path} is not UTF-8 text; save it as UTF-8.") from error
        except OSError as error:
            raise DatasetError(f"{path} cannot be read: {error.strerror or error}.") from error

    def write(self, journal: Journal, record: ImageRecord, new: str) -> None:
        """Write the text of an image."""
        text = self.text(record, new)
        journal.write(self.path(record), text, self.folders.name_of(record.path))

    def close(self, journal: Journal) -> None:
        """Do nothing: each file is written at once."""


@dataclass
class MetadataTarget:
    """Writes captions or tags into a metadata file, at the end and every few minutes.

    An image that is in the file already, with whatever style of key, keeps its key and the rest of
    its entry.

    Args:
        file: The metadata file.
        column: `caption` or `tags`.
        policy: What to do with existing text; `missing` skips images that have any caption or tags.
        join: How `append` joins existing and new text.
        key_of: Returns the key of an image that is not in the file yet.
        folders: The dataset.
        sized: Whether the image sizes are written too.
        replaces: Whether existing entries are dropped, including those of images without new text.
        backup: Whether the existing file is copied before the first write.
    """

    file: Path
    column: Literal["caption", "tags"]
    policy: Policy
    join: Join
    key_of: Callable[[ImageRecord], str]
    folders: DatasetFolders
    sized: bool = False
    replaces: bool = False
    backup: bool = False
    every_s: float = 120.0
    kept: Path | None = None
    """The path of the backup; None until there is one."""
    _entries: dict[str, MetadataEntry] = field(default_factory=dict)
    _named: dict[Path, str] = field(default_factory=dict)
    _owners: dict[str, Path] = field(default_factory=dict)
    _begun: bool = False
    _written: float = field(default_factory=time.monotonic)
    _pending: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._beside = SidecarLookup()
        if not self.replaces:
            self._read()

    def needs_caption(self, record: ImageRecord) -> bool:
        """Return whether text should be written for an image."""
        if self.policy != "missing":
            return True
        entry = self._entries.get(self._key(record))
        has_entry = entry is not None and (entry.caption or entry.tags)
        return not (has_entry or self._beside.has_caption(record))

    def fault(self, record: ImageRecord) -> str:
        """Return why no text can be written: another image has the same key; empty if none has."""
        key = self._key(record)
        owner = self._owners.setdefault(key, record.path)
        if owner != record.path:
            return f"its key in the metadata would be {key!r}, as for {owner}; rename one"
        return ""

    def text(self, record: ImageRecord, new: str) -> str:
        """Return the text to write for an image."""
        before = self._before(record)
        return self.join(before, new) if self.policy == "append" and before else new

    def write(self, journal: Journal, record: ImageRecord, new: str) -> None:
        """Store the text of an image, and write the file if the last write was long ago."""
        self._begin(journal)
        key = self._key(record)
        entry = self._entries.get(key, MetadataEntry(key))
        if self.column == "caption":
            entry = replace(entry, caption=self.text(record, new))
        else:
            entry = replace(entry, tags=self.text(record, new))
        self._entries[key] = replace(entry, image_size=record.whole) if self.sized else entry
        self._pending.append(self.folders.name_of(record.path))
        if time.monotonic() - self._written > self.every_s:
            self.close(journal)

    def close(self, journal: Journal) -> None:
        """Write the metadata file with all pending captions and tags."""
        if not self._pending:
            return
        content = metadata_text(self.file, self._entries.values()).encode()
        journal.replace(self.file, content, self._pending)
        self._pending.clear()
        self._written = time.monotonic()

    def _begin(self, journal: Journal) -> None:
        """Before the first write, read what an interrupted command wrote, or make a backup."""
        if self._begun:
            return
        self._begun = True
        if self.replaces and journal.done:
            self._read()
        if self.backup and not journal.done:
            self.kept = keep_backup(self.file)

    def _read(self) -> None:
        """Read the existing entries, and resolve their keys to images as training does."""
        if not self.file.is_file():
            return
        entries = read_metadata(self.file).entries
        self._entries = {entry.key: entry for entry in entries}
        self._named = keys_of_files(entries, self.folders.roots)
        if not self._named:
            self._named = keys_of_files(entries, [self.file.parent])

    def _key(self, record: ImageRecord) -> str:
        return self._named.get(record.path.absolute()) or self.key_of(record)

    def _before(self, record: ImageRecord) -> str:
        entry = self._entries.get(self._key(record))
        return "" if entry is None else (entry.caption if self.column == "caption" else entry.tags)
