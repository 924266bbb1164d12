"""Writes words beside pictures or into metadata, with a journal that can take all of it back.

Each change is noted, with what was there before, ahead of the change itself, so `undo` restores
byte for byte; an unfinished journal tells which pictures are done already.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from impasto import files
from impasto.data.metadata import MetadataEntry, read_metadata, write_metadata
from impasto.data.records import ImageRecord
from impasto.errors import DatasetError, RunError
from impasto.parsing import parse_json

Policy = Literal["overwrite", "append", "missing"]
Join = Callable[[str, str], str]
"""What was there, what is new -> what is written."""

JOURNALS = "annotations"
LONGEST_TEXT = 1 << 20  # bytes of a sidecar that is appended to


@dataclass(frozen=True)
class Undone:
    """What taking a journal back did.

    Attributes:
        restored: Files that are as they were.
        changed_since: Files that were changed by somebody else, and left alone.
    """

    restored: int
    changed_since: tuple[Path, ...]


@dataclass
class Journal:
    """The notes of one command in a folder.

    Args:
        folder: Where journals are kept.
        fingerprint: What the command does; an unfinished one of the same kind is continued.
    """

    folder: Path
    fingerprint: str
    done: set[str] = field(default_factory=set)
    _file: Any = None

    def __enter__(self) -> Journal:
        path = self._unfinished() or self.folder / f"{time.strftime('%Y%m%d-%H%M%S')}.jsonl"
        number = 1
        while path.exists() and not self.done:
            number += 1
            path = path.with_name(f"{time.strftime('%Y%m%d-%H%M%S')}-{number}.jsonl")
        files.require_writable(self.folder)
        self._file = path.open("a", encoding="utf-8", newline="\n")
        if not self.done:
            self._note({"begin": self.fingerprint, "at": time.time()})
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._note({"end": True})
        self._file.close()

    def write(self, path: Path, text: str, picture: str) -> None:
        """Note what is there, then write; the text gets a line end."""
        before = path.read_bytes() if path.is_file() else None
        after = (text + "\n").encode()
        if before != after:
            self._note(
                {
                    "path": str(path.absolute()),
                    "before": None if before is None else base64.b64encode(before).decode(),
                    "after": hashlib.sha256(after).hexdigest(),
                }
            )
            files.write_text(path, text + "\n")
        self.finish(picture)

    def write_metadata(self, path: Path, entries: list[MetadataEntry]) -> None:
        """The same for a whole metadata file."""
        before = path.read_bytes() if path.is_file() else None
        note = {
            "path": str(path.absolute()),
            "before": None if before is None else base64.b64encode(before).decode(),
        }
        self._note(note)
        write_metadata(path, entries, backup=False)
        self._note({**note, "before": "same", "after": files.sha256_of(path)})

    def finish(self, picture: str) -> None:
        """Note that a picture needs nothing more; if that is lost, it is done once more."""
        self._note({"picture": picture}, durably=False)

    def _unfinished(self) -> Path | None:
        """The newest journal, if it is of the same command and has no end."""
        newest = newest_journal(self.folder)
        if newest is None:
            return None
        lines = list(_lines(newest))
        if not lines or lines[0].get("begin") != self.fingerprint or "end" in lines[-1]:
            return None
        self.done = {line["picture"] for line in lines if "picture" in line}
        return newest if self.done else None

    def _note(self, line: Mapping[str, Any], *, durably: bool = True) -> None:
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()
        if durably:
            os.fsync(self._file.fileno())


def newest_journal(folder: Path) -> Path | None:
    """The last command that can be taken back."""
    found = sorted(folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    return found[-1] if found else None


def undo(folder: Path, *, force: bool = False) -> Undone:
    """Take the newest journal back, newest change first; it is gone afterwards.

    Args:
        folder: Where journals are kept.
        force: Also restore files that were changed since.

    Raises:
        RunError: There is nothing to take back.
        StorageError: A file could not be written.
    """
    newest = newest_journal(folder)
    if newest is None:
        raise RunError(f"There is nothing to undo in {folder}: no words were written from here.")
    befores: dict[Path, str | None] = {}
    afters: dict[Path, str] = {}
    for line in _lines(newest):
        if "path" not in line:
            continue
        path = Path(line["path"])
        if line["before"] != "same":
            befores.setdefault(path, line["before"])
        if "after" in line:
            afters[path] = line["after"]
    changed = [] if force else [p for p in befores if _differs(p, afters.get(p), befores[p])]
    restored = 0
    for path, before in befores.items():
        if path not in changed:
            _restore(path, before)
            restored += 1
    if changed:
        newest.replace(newest.with_suffix(".partly-undone"))
    else:
        newest.unlink()
    return Undone(restored, tuple(changed))


def _differs(path: Path, after: str | None, before: str | None) -> bool:
    """Whether a file is neither as it was nor as the command left it."""
    if not path.is_file():
        return before is not None
    digest = files.sha256_of(path)
    was = None if before is None else hashlib.sha256(base64.b64decode(before)).hexdigest()
    return digest not in (after, was)


def _restore(path: Path, before: str | None) -> None:
    if before is None:
        path.unlink(missing_ok=True)
        return
    with files.replace_file(path) as partial:
        partial.write_bytes(base64.b64decode(before))


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    """A last line that was cut off by a crash is passed over: its change did not begin."""
    with file.open(encoding="utf-8") as opened:
        for text in opened:
            try:
                yield parse_json(text)
            except ValueError:
                continue


@dataclass(frozen=True)
class Sidecars:
    """Words go into files beside the pictures.

    Attributes:
        ending: Of those files, such as `.txt`.
        policy: What becomes of one that is there.
        join: How `append` puts words together.
    """

    ending: str
    policy: Policy
    join: Join

    def wants(self, record: ImageRecord) -> bool:
        """Whether a picture is to get words."""
        return self.policy != "missing" or not _has_text(self.path(record))

    def path(self, record: ImageRecord) -> Path:
        """Where a picture's words are."""
        return record.path.with_suffix(self.ending)

    def text(self, record: ImageRecord, new: str) -> str:
        """What will be written.

        Raises:
            DatasetError: What is there cannot be appended to.
        """
        path = self.path(record)
        if self.policy != "append" or not path.is_file():
            return new
        if path.stat().st_size > LONGEST_TEXT:
            raise DatasetError(f"{path} has {path.stat().st_size >> 20} MiB; these are no words.")
        try:
            return self.join(path.read_text(encoding="utf-8-sig").strip(), new)
        except UnicodeDecodeError as error:
            raise DatasetError(f"{path} is not UTF-8 text; save it as UTF-8.") from error

    def write(self, journal: Journal, record: ImageRecord, new: str) -> None:
        """Write a picture's words."""
        journal.write(self.path(record), self.text(record, new), str(record.path))

    def close(self, journal: Journal) -> None:
        """All is written already."""


@dataclass
class MetadataWords:
    """Words go into a metadata file, which is written at the end and every few minutes.

    Args:
        file: The file.
        column: `caption` or `tags`.
        policy: What becomes of words that are there.
        join: How `append` puts words together.
        key_of: A picture's key.
    """

    file: Path
    column: Literal["caption", "tags"]
    policy: Policy
    join: Join
    key_of: Callable[[ImageRecord], str]
    every_s: float = 120.0
    _entries: dict[str, MetadataEntry] = field(default_factory=dict)
    _written: float = field(default_factory=time.monotonic)
    _pending: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.file.is_file():
            self._entries = {entry.key: entry for entry in read_metadata(self.file).entries}

    def wants(self, record: ImageRecord) -> bool:
        """Whether a picture is to get words."""
        return self.policy != "missing" or not self._before(record)

    def text(self, record: ImageRecord, new: str) -> str:
        """What will be written."""
        before = self._before(record)
        return self.join(before, new) if self.policy == "append" and before else new

    def write(self, journal: Journal, record: ImageRecord, new: str) -> None:
        """Keep a picture's words."""
        key = self.key_of(record)
        entry = self._entries.get(key, MetadataEntry(key))
        if self.column == "caption":
            entry = replace(entry, caption=self.text(record, new))
        else:
            entry = replace(entry, tags=self.text(record, new))
        self._entries[key] = entry
        self._pending.append(str(record.path))
        if time.monotonic() - self._written > self.every_s:
            self.close(journal)

    def close(self, journal: Journal) -> None:
        """Write the file."""
        if not self._pending:
            return
        journal.write_metadata(self.file, list(self._entries.values()))
        for picture in self._pending:
            journal.finish(picture)
        self._pending.clear()
        self._written = time.monotonic()

    def _before(self, record: ImageRecord) -> str:
        entry = self._entries.get(self.key_of(record))
        return "" if entry is None else (entry.caption if self.column == "caption" else entry.tags)


def _has_text(path: Path) -> bool:
    return path.is_file() and bool(path.read_bytes().strip())
