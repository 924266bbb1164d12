"""What a journal holds: the form of its lines, of this version and of the first one.

`journal.py` writes them, `undoing.py` takes them back. Whatever a file holds, reading it ends in
`Notes`, with what is damaged counted.
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

UNKNOWN = ""  # the hash of what was written, where a crash or an old version did not note it
NUMBERED = re.compile(r"edit-(\d{6,})\.jsonl")
_OLD_NAME = re.compile(r"(\d{8}-\d{6})(?:-(\d+))?\.(?:jsonl|partly-undone)")


@dataclass(frozen=True)
class Edit:
    """What was changed in one file.

    Attributes:
        spot: The file; in a journal of an earlier version its absolute path.
        was: The hash of what was there; None if nothing was.
        after: The hash of what was written; `UNKNOWN` if that is not noted.
        content: What was there, if it is not what the edit before wrote.
        images: Names of the images that need nothing more once this is written.
    """

    spot: DatasetFile | Path
    was: str | None
    after: str
    content: bytes | None = None
    images: tuple[str, ...] = ()


@dataclass
class Notes:
    """What a journal says: the edits of one command, and how far it came.

    Attributes:
        command: What the command does, as text.
        edits: The changes in their order.
        done: Names of the images that need nothing more.
        ended: Whether the command came to its end, or was taken back in part.
        folders: The dataset's folders, where the journal is kept elsewhere.
        damaged: Numbers of lines that are not as they were written.
        at: When the command began, in seconds since 1970; None where that is not noted.
    """

    command: str = ""
    edits: list[Edit] = field(default_factory=list)
    done: set[str] = field(default_factory=set)
    ended: bool = False
    folders: list[str] | None = None
    damaged: list[int] = field(default_factory=list)
    at: int | None = None


def journals_in(folder: Path) -> list[Path]:
    """The journals in a folder, oldest first: plain files, no links."""
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    ordered = [(_age_of(path.name), path) for path in there]
    return [
        path
        for age, path in sorted(pair for pair in ordered if pair[0])
        if path.is_file() and not path.is_symlink()
    ]


def edit_name(journal: Path) -> str:
    """What people call the change that a journal is of: its number, or its time in old versions."""
    numbered = NUMBERED.fullmatch(journal.name)
    return str(int(numbered[1])) if numbered else journal.stem


def _age_of(name: str) -> tuple[int, str, int] | tuple[()]:
    """What journals are ordered by; nothing for other files. Earlier versions had no numbers."""
    new, old = NUMBERED.fullmatch(name), _OLD_NAME.fullmatch(name)
    if new:
        return int(new[1]), "", 0
    return (0, old[1], int(old[2] or 1)) if old else ()


def with_checksum(line: Mapping[str, Any]) -> str:
    """A line of a journal, with its check sum and its end."""
    return json.dumps({**line, "sum": _sum_of(line)}) + "\n"


def _sum_of(line: Mapping[str, Any]) -> str:
    plain = {key: value for key, value in line.items() if key != "sum"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode("ascii")).hexdigest()[:16]


def read_notes(file: Path) -> Notes:
    """A journal's content, of this version or an earlier one; what is damaged is counted.

    A last line that was cut off by a crash is skipped: its change did not begin.

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
    elif "picture" in line:
        notes.done.add(_text(line["picture"]))
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
        images = tuple(_text(name) for name in line.get("pictures", ()))
        notes.edits.append(Edit(spot, was, _text(line["after"]), content, images))


def _read_old_line(notes: Notes, line: dict[str, Any]) -> None:
    """A line of the first version: absolute paths, `same` for what an earlier line has."""
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
    """The hash of a file's content; None where there is no regular file."""
    try:
        return files.sha256_of(path) if path.is_file() else None
    except OSError:
        return UNKNOWN


def hash_of(content: bytes | None) -> str | None:
    """The hash of a file's content; None of no file."""
    return None if content is None else hashlib.sha256(content).hexdigest()


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("no text")
    return value
