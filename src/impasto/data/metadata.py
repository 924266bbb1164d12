"""Metadata files: words and sizes of many pictures in one JSON or JSONL file, as sd-scripts has it.

JSON is `{key: {caption, tags, train_resolution, image_size}}`; JSONL is one object per line with
`image_path` besides (kohya-ss/sd-scripts, `finetune/merge_captions_to_metadata.py` and
`library/train_util.py`, FineTuningDataset). A key is an absolute path, a path below the picture
folder, or either without its ending.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from impasto import files
from impasto.data import images
from impasto.data.records import ImageRecord, Size
from impasto.data.stages import Failure
from impasto.errors import DatasetError
from impasto.parsing import parse_json, text_lines

KeyStyle = Literal["relative", "absolute", "stem"]
_JSONL = ".jsonl"
_EXPECTED = (
    'expected {"picture.png": {"caption": "...", "tags": "..."}, ...}, or in a .jsonl file one '
    '{"image_path": "picture.png", "caption": "..."} per line'
)


@dataclass(frozen=True, slots=True)
class MetadataEntry:
    """What a metadata file says of one picture.

    Attributes:
        key: Its name there.
        caption: Prose, perhaps on several lines.
        tags: Tags.
        train_resolution: The bucket that an earlier tool chose.
        image_size: The size of the stored pixels; sd-scripts does not turn them by EXIF.
        others: What else the entry holds, kept when it is written again.
    """

    key: str
    caption: str = ""
    tags: str = ""
    train_resolution: Size | None = None
    image_size: Size | None = None
    others: tuple[tuple[str, Any], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The entry without its key, as it is written."""
        content: dict[str, Any] = {}
        if self.caption:
            content["caption"] = self.caption
        if self.tags:
            content["tags"] = self.tags
        for name in ("train_resolution", "image_size"):
            size: Size | None = getattr(self, name)
            if size is not None:
                content[name] = [size.width, size.height]
        return content | dict(self.others)


@dataclass(frozen=True)
class Metadata:
    """A metadata file's content."""

    file: Path
    entries: tuple[MetadataEntry, ...]


def read_metadata(file: Path) -> Metadata:
    """Read a metadata file.

    Raises:
        DatasetError: It is missing, not UTF-8, not JSON, or of another form; with line or key.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DatasetError(f"The metadata file {file} is not there. Check its path.") from error
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"The metadata file {file} is not UTF-8 text (byte {error.start}). Save it as UTF-8."
        ) from error
    except OSError as error:
        raise DatasetError(
            f"The metadata file {file} cannot be read: {error.strerror or error}."
        ) from error
    read = _read_lines if file.suffix.lower() == _JSONL else _read_object
    entries = read(file, text)
    if not entries:
        raise DatasetError(f"The metadata file {file} names no picture; {_EXPECTED}.")
    return Metadata(file, tuple(entries))


def write_metadata(
    file: Path, entries: Iterable[MetadataEntry], *, backup: bool = True
) -> Path | None:
    """Write a metadata file durably; one that is there is kept as a backup, whose path is returned.

    Args:
        file: Where; `.jsonl` has one object a line.
        entries: What it is to say.
        backup: Whether what is there is kept under another name.

    Raises:
        StorageError: It could not be written; what was there is untouched.
    """
    if file.suffix.lower() == _JSONL:
        lines = [{"image_path": entry.key, **entry.as_dict()} for entry in entries]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    else:
        content = {entry.key: entry.as_dict() for entry in entries}
        text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
    kept = keep_backup(file) if backup else None
    files.write_text(file, text)
    return kept


def keep_backup(file: Path) -> Path | None:
    """Copy a file to `<name>.bak`, or the first of `.bak2`, `.bak3`, ... that is not there yet."""
    if not file.exists():
        return None
    number, backup = 1, file.with_name(f"{file.name}.bak")
    while backup.exists():
        number += 1
        backup = file.with_name(f"{file.name}.bak{number}")
    with files.replace_file(backup) as partial:
        shutil.copy2(file, partial)
    return backup


def merge_words(
    known: Sequence[MetadataEntry], records: Sequence[ImageRecord], style: KeyStyle
) -> list[MetadataEntry]:
    """Put the words of scanned pictures into metadata; what else the entries hold stays.

    Raises:
        DatasetError: Two pictures would get one key.
    """
    entries = {entry.key: entry for entry in known}
    taken: dict[str, Path] = {}
    for record in records:
        key = _key_of(record, style)
        if key in taken:
            raise DatasetError(
                f"{taken[key]} and {record.path} would both be called {key!r} in the metadata. "
                f"Use keys of the style relative, which have the ending."
            )
        taken[key] = record.path
        entry = entries.get(key, MetadataEntry(key))
        entries[key] = replace(
            entry, caption=record.caption or entry.caption, tags=record.tags or entry.tags
        )
    return list(entries.values())


def _key_of(record: ImageRecord, style: KeyStyle) -> str:
    if style == "absolute":
        return str(record.path.absolute())
    return os.path.splitext(record.name)[0] if style == "stem" else record.name  # noqa: PTH122


class PictureFinder:
    """Finds the files that the keys of metadata stand for.

    Args:
        root: The folder that keys are relative to.
    """

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._resolved = os.path.realpath(root)
        self._stems: dict[str, list[str]] | None = None

    def find(self, key: str) -> str | Failure:
        """The path of a picture, or why there is none."""
        slashed = key.replace("\\", "/")
        candidates = [key] if os.path.isabs(key) else [key, slashed]  # noqa: PTH117 - hot path
        for candidate in candidates:
            path = os.path.join(self._root, candidate)  # noqa: PTH118 - hot path
            if not os.path.isabs(key) and ".." in slashed and not self._is_inside(path):  # noqa: PTH117
                return Failure(f"its key leads out of {self._root}")
            if os.path.isfile(path):  # noqa: PTH113 - hot path
                return path
        if os.path.isabs(key):  # noqa: PTH117
            return self._of_stem(os.path.dirname(key), os.path.basename(key))  # noqa: PTH119, PTH120
        return self._by_stem(slashed)

    def _is_inside(self, path: str) -> bool:
        real = os.path.realpath(path)
        return os.path.commonpath([real, self._resolved]) == self._resolved

    def _by_stem(self, stem: str) -> str | Failure:
        """Among the files below the root: the path without ending, or else the name alone."""
        if self._stems is None:
            self._stems = _files_by_stem(self._root)
        found = self._stems.get(stem) or self._stems.get("*/" + stem.rpartition("/")[2], [])
        return _only(found, f"metadata names it, but it is not in {self._root}")

    def _of_stem(self, folder: str, stem: str) -> str | Failure:
        endings = sorted(images.EXTENSIONS | {e.upper() for e in images.EXTENSIONS})
        paths = [Path(folder, stem + ending) for ending in endings]
        there = [str(path) for path in paths if path.is_file()]
        return _only(there, "metadata names it, but it is not there")


def _only(found: list[str], missing: str) -> str | Failure:
    if not found:
        return Failure(missing)
    if len(found) > 1:
        names = ", ".join(found[:3])
        return Failure(f"its key fits several files ({names}); give the ending in the metadata")
    return found[0]


def _files_by_stem(root: str) -> dict[str, list[str]]:
    """Relative path without ending -> files; with `*/` before the bare name, wherever it is."""
    stems: dict[str, list[str]] = {}
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = os.path.relpath(folder, root).replace(os.sep, "/")
        prefix = "" if below == "." else f"{below}/"
        for name in sorted(names):
            stem, ending = os.path.splitext(name)  # noqa: PTH122 - hot path
            if ending.lower() in images.EXTENSIONS and not name.startswith("."):
                path = os.path.join(folder, name)  # noqa: PTH118 - hot path
                stems.setdefault(prefix + stem, []).append(path)
                stems.setdefault("*/" + stem, []).append(path)
    return stems


def _read_object(file: Path, text: str) -> list[MetadataEntry]:
    try:
        content = parse_json(text, pairs=_without_doubles)
    except json.JSONDecodeError as error:
        raise DatasetError(
            f"{file}, line {error.lineno}, column {error.colno}: not valid JSON ({error.msg})."
        ) from error
    except _DoubleKeyError as error:
        raise DatasetError(f"{file} has the key {error} twice. Take one of them out.") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{file} holds a {type(content).__name__}; {_EXPECTED}.")
    return [_entry(file, repr(key), key, value) for key, value in content.items()]


def _read_lines(file: Path, text: str) -> list[MetadataEntry]:
    entries = []
    for number, line in enumerate(text_lines(text), start=1):
        if not line.strip():
            continue
        where = f"line {number}"
        try:
            content = parse_json(line)
        except json.JSONDecodeError as error:
            raise DatasetError(
                f"{file}, {where}, column {error.colno}: not valid JSON ({error.msg})."
            ) from error
        if not isinstance(content, dict) or not isinstance(content.get("image_path"), str):
            raise DatasetError(f"{file}, {where}: has no image_path; {_EXPECTED}.")
        entries.append(_entry(file, where, content.pop("image_path"), content))
    return entries


class _DoubleKeyError(Exception):
    pass


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _DoubleKeyError(repr(next(key for key in keys if keys.count(key) > 1)))
    return content


def _entry(file: Path, where: str, key: str, content: Any) -> MetadataEntry:
    if not isinstance(content, dict):
        raise DatasetError(f"{file}, {where}: found {content!r}; {_EXPECTED}.")
    if not key or "\0" in key:
        raise DatasetError(f"{file}, {where}: {key!r} cannot be the name of a picture.")
    others = dict(content)
    words = []
    for name in ("caption", "tags"):
        value = others.pop(name, None) or ""
        if not isinstance(value, str):
            raise DatasetError(f"{file}, {where}: {name} is {value!r}; expected text.")
        words.append(value.strip())
    train = _size(file, where, "train_resolution", others.pop("train_resolution", None))
    if train is not None and (train.width % 8 or train.height % 8):
        raise DatasetError(
            f"{file}, {where}: train_resolution is {train}; expected multiples of 8."
        )
    shown = _size(file, where, "image_size", others.pop("image_size", None))
    return MetadataEntry(key, words[0], words[1], train, shown, tuple(others.items()))


def _size(file: Path, where: str, name: str, value: Any) -> Size | None:
    if value is None:
        return None
    if (
        isinstance(value, list)
        and len(value) == 2
        and all(type(side) is int and 0 < side < 1 << 20 for side in value)
    ):
        return Size(*value)
    raise DatasetError(f"{file}, {where}: {name} is {value!r}; expected [width, height] in pixels.")
