"""The content of a journal: the format of its lines, of this version and of the first one.

`journal.py` writes them, `undoing.py` undoes them. Whatever a file contains, reading it returns
`Notes` in which damaged lines are counted.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from impasto import files
from impasto.annotate.dataset_folders import DatasetFile
from impasto.errors import RunError
from impasto.parsing import parse_json

UNKNOWN = ""  # the hash of written content that a crash or an old version did not record
NUMBERED = re.compile(r"edit-(\d{6,})\.jsonl")
_OLD_NAME = re.compile(r"(\d{8}-\d{6})(?:-(\d+))?\.(?:jsonl|partly-undone)")


@dataclass(frozen=True)
class Edit:
    """A change to one file.

    Attributes:
        spot: The file; in a journal of an earlier version its absolute path.
        was: The hash of the previous content; None if the file did not exist.
        after: The hash of the written content; `UNKNOWN` if it was not recorded.
        content: The previous content; None if it equals what the edit before wrote.
        images: Names of the images that are completed once this is written.
    """

    spot: DatasetFile | Path
    was: str | None
    after: str
    content: bytes | None = None
    images: tuple[str, ...] = ()


@dataclass
class Notes:
    """The content of a journal: the edits of one command, and its progress.

    Attributes:
        command: The command, as text.
        edits: The changes in order.
        done: Names of the completed images.
        ended: Whether the command was completed, or undone in part.
        folders: The dataset's folders, if the journal is kept elsewhere.
        damaged: Numbers of damaged lines.
        at: When the command started, in seconds since 1970; None if that is not recorded.
    """

    command: str = ""
    edits: list[Edit] = field(default_factory=list)
    done: set[str] = field(default_factory=set)
    ended: bool = False
    folders: list[str] | None = None
    damaged: list[int] = field(default_factory=list)
    at: int | None = None


def journals_in(folder: Path) -> list[Path]:
    """Return the journals in a folder, oldest first: plain files, no links."""
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    ordered = [(_age_of(path.name), path) for path in there]
    return [
        path
        for age, path in sorted(pair for pair in ordered if pair[0])
        if path.is_file() and not path.is_symlink()
    ]


def edit_name(journal: Path) -> str:
    """Return the name of a journal's change: its number, or its time in old versions."""
    numbered = NUMBERED.fullmatch(journal.name)
    return str(int(numbered[1])) if numbered else journal.stem


def _age_of(name: str) -> tuple[int, str, int] | tuple[()]:
    """Return a sort key for journals, empty for other files. Earlier versions had no numbers."""
    new, old = NUMBERED.fullmatch(name), _OLD_NAME.fullmatch(name)
    if new:
        return int(new[1]), "", 0
    return (0, old[1], int(old[2] or 1)) if old else ()


def with_checksum(line: Mapping[str, Any]) -> str:
    """Return a line of a journal, with its checksum and a line end."""
    return json.dumps({**line, "sum": _sum_of(line)}) + "\n"


def _sum_of(line: Mapping[str, Any]) -> str:
    plain = {key: value for key, value in line.items() if key != "sum"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode("ascii")).hexdigest()[:16]


def read_notes(file: Path) -> Notes:
    """Read a journal of this version or an earlier one, and count damaged lines.

    A last line that a crash cut off is skipped: its change did not start.

    Raises:
        RunError: The file cannot be read.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise RunError(f"The notes {file} cannot be read: {error.strerror or error}.") from error
    lines = content.split(b"\n")
    notes = Notes()
    read = _read_line if b'"sum"' in lines[0] else _read_old_line
    for number, text in enumerate(lines[:-1], start=1):
        if not text.strip():
            continue
        try:
            line = parse_json(text, halves=True)
            if not isinstance(line, dict):
                raise TypeError("no object")
            read(notes, line)
        except (ValueError, KeyError, TypeError, RecursionError):
            notes.damaged.append(number)
    return notes


def _read_line(notes: Notes, line: dict[str, Any]) -> None:
    if line["sum"] != _sum_of(line):
        raise ValueError("another sum")
    if "begin" in line:
        notes.command = _text(line["begin"])
        notes.at = line["at"] if type(line.get("at")) is int else None
        notes.folders = [_text(item) for item in line["folders"]] if "folders" in line else None
    elif "image" in line or "picture" in line:  # the latter of earlier versions
        notes.done.add(_text(line.get("image", line.get("picture"))))
    elif "end" in line or "undone" in line:
        notes.ended = True
    else:
        content = base64.b64decode(line["before"], validate=True) if "before" in line else None
        was = None if line["was"] is None else _text(line["was"])
        if content is not None and hash_of(content) != was:
            raise ValueError("another content")
        if type(line["root"]) is not int:
            raise TypeError("no number")
        spot = DatasetFile(line["root"], _text(line["file"]))
        images = tuple(_text(name) for name in line.get("images", line.get("pictures", ())))
        notes.edits.append(Edit(spot, was, _text(line["after"]), content, images))


def _read_old_line(notes: Notes, line: dict[str, Any]) -> None:
    """Read a line of the first version: absolute paths, `same` for content in an earlier line."""
    if "path" not in line:
        notes.ended = notes.ended or "end" in line
        return
    path, before = Path(_text(line["path"])), line["before"]
    after = _text(line.get("after", UNKNOWN))
    if before == "same":
        last = next(n for n in reversed(range(len(notes.edits))) if notes.edits[n].spot == path)
        old = notes.edits[last]
        notes.edits[last] = Edit(path, old.was, after, old.content)
        return
    content = None if before is None else base64.b64decode(_text(before), validate=True)
    notes.edits.append(Edit(path, hash_of(content), after, content))


def file_hash(path: Path) -> str | None:
    """Return the hash of a file's content; None if it is not a regular file."""
    try:
        return files.sha256_of(path) if path.is_file() else None
    except OSError:
        return UNKNOWN


def hash_of(content: bytes | None) -> str | None:
    """Return the hash of a file's content; None for None."""
    return None if content is None else hashlib.sha256(content).hexdigest()


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("no text")
    return value
