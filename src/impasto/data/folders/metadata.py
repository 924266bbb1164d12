"""Metadata files: captions and sizes of many images in one JSON or JSONL file, as in sd-scripts.

JSON is `{key: {caption, tags, train_resolution, image_size}}`; JSONL is one object per line, with
an additional `image_path` (kohya-ss/sd-scripts, `finetune/merge_captions_to_metadata.py` and
`library/train_util.py`, FineTuningDataset). A key is an absolute path, a path relative to the image
folder, or either without its extension.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from impasto import files, temporary_names
from impasto.data.folders.finding import ImageFinder
from impasto.data.records import ImageRecord, Size
from impasto.errors import DatasetError
from impasto.parsing import is_text, json_fault, json_fault_in, parse_json, read_text, split_lines
from impasto.remote_paths import absolute, is_remote, shown
from impasto.storage import objects

KeyStyle = Literal["relative", "absolute", "stem"]
_JSONL = ".jsonl"
_BREAKING = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_EXPECTED = (
    'expected {"picture.png": {"caption": "...", "tags": "..."}, ...}, or in a .jsonl file one '
    '{"image_path": "picture.png", "caption": "..."} per line'
)


@dataclass(frozen=True, slots=True)
class MetadataEntry:
    """A metadata file's entry for one image.

    Attributes:
        key: The key of the entry, which names the image.
        caption: Prose, possibly of several lines.
        tags: Tags.
        train_resolution: The bucket that an earlier tool chose.
        image_size: The size of the stored pixels; sd-scripts does not apply EXIF rotation.
        others: All other content of the entry, retained when it is written again.
    """

    key: str
    caption: str = ""
    tags: str = ""
    train_resolution: Size | None = None
    image_size: Size | None = None
    others: tuple[tuple[str, Any], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the entry without its key, as it is written to a file."""
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
    """The contents of a metadata file of sd-scripts."""

    file: Path
    entries: tuple[MetadataEntry, ...]


def read_metadata(file: Path) -> Metadata:
    """Read a metadata file.

    Raises:
        DatasetError: It is missing, empty, not UTF-8, not JSON, or of another form; the message has
            the line or key.
    """
    try:
        if is_remote(file):
            text = objects.read(file).decode("utf-8-sig")
        elif file.exists() and not file.is_file():
            raise DatasetError(f"The metadata file {file} is not a regular file.")
        else:
            text = read_text(file)
    except FileNotFoundError as error:
        raise DatasetError(
            f"The metadata file {shown(file)} does not exist. Check its path."
        ) from error
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"The metadata file {shown(file)} is not UTF-8 text (byte {error.start}). Save it as "
            f"UTF-8."
        ) from error
    except OSError as error:
        raise DatasetError(
            f"The metadata file {shown(file)} cannot be read: {error.strerror or error}."
        ) from error
    read = _read_lines if file.suffix.lower() == _JSONL else _read_object
    entries = read(shown(file), text)
    if not entries:
        raise DatasetError(f"The metadata file {shown(file)} names no image; {_EXPECTED}.")
    return Metadata(file, tuple(entries))


def write_metadata(
    file: Path, entries: Iterable[MetadataEntry], *, backup: bool = True
) -> Path | None:
    """Write a metadata file durably; an existing file is kept as a backup, whose path is returned.

    Args:
        file: The file; `.jsonl` has one object per line.
        entries: Its entries.
        backup: Whether to keep an existing file under another name.

    Raises:
        StorageError: It could not be written; an existing file is untouched.
    """
    text = metadata_text(file, entries)
    kept = keep_backup(file) if backup else None
    files.rewrite_text(file, text)
    return kept


def metadata_text(file: Path, entries: Iterable[MetadataEntry]) -> str:
    """Return the content of a metadata file with this name and these entries."""
    if file.suffix.lower() == _JSONL:
        lines = [{"image_path": entry.key, **entry.as_dict()} for entry in entries]
        return "".join(_dumped(line) + "\n" for line in lines)
    content = {entry.key: entry.as_dict() for entry in entries}
    return _dumped(content, indent=1) + "\n"


def _dumped(value: Any, *, indent: int | None = None) -> str:
    """Return JSON without escapes, except of characters that other readers refuse or mistake."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return _BREAKING.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def keep_backup(file: Path) -> Path | None:
    """Copy a file to `<name>.bak`, or the first unused of `.bak2`, `.bak3`, ...; return the copy.

    None if the file does not exist.
    """
    if not file.exists():
        return None
    short = temporary_names.shortened(file.name, temporary_names.LONGEST_NAME - len(".bak999"))
    number, backup = 1, file.with_name(f"{short}.bak")
    while os.path.lexists(backup):
        number += 1
        backup = file.with_name(f"{short}.bak{number}")
    files.copy_file(file, backup)
    return backup


def merge_captions(
    known: Sequence[MetadataEntry],
    records: Sequence[ImageRecord],
    style: KeyStyle,
    *,
    named: Mapping[Path, str] | None = None,
) -> list[MetadataEntry]:
    """Put the captions of scanned images into metadata; other content of the entries is retained.

    Args:
        known: The existing entries.
        records: The images with their captions.
        style: The style of keys for images without an entry.
        named: The keys of `known` by the files they refer to (`keys_of_files`), so that an image
            keeps its existing key.

    Raises:
        DatasetError: Two images would get the same key.
    """
    entries = {entry.key: entry for entry in known}
    taken: dict[str, Path] = {}
    for record in records:
        key = (named or {}).get(record.path.absolute()) or _key_of(record, style)
        if key in taken and taken[key] != record.path:
            raise DatasetError(
                f"{shown(taken[key])} and {shown(record.path)} would both have the key {key!r} in "
                f"the metadata. Use keys of the style relative, which have the file extension."
            )
        taken[key] = record.path
        entry = entries.get(key, MetadataEntry(key))
        entries[key] = replace(
            entry, caption=record.caption or entry.caption, tags=record.tags or entry.tags
        )
    return list(entries.values())


def keys_of_files(known: Sequence[MetadataEntry], roots: Iterable[Path]) -> dict[Path, str]:
    """Return absolute path -> key, for the entries that name a file below one of `roots`."""
    keys: dict[Path, str] = {}
    for root in roots:
        found = ImageFinder(root).find_all([entry.key for entry in known])
        for entry, path in zip(known, found, strict=True):
            if isinstance(path, str):
                keys.setdefault(Path(path).absolute(), entry.key)
    return keys


def _key_of(record: ImageRecord, style: KeyStyle) -> str:
    if style == "absolute":
        return shown(absolute(record.path))
    name = record.file_name
    return os.path.splitext(name)[0] if style == "stem" else name  # noqa: PTH122


def _read_object(file: str, text: str) -> list[MetadataEntry]:
    try:
        content = parse_json(text, pairs=_without_doubles, halves=True)
    except json.JSONDecodeError as error:
        raise DatasetError(json_fault_in(file, error)) from error
    except _DoubleKeyError as error:
        raise DatasetError(f"{file} has the key {error} twice. Remove one of them.") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{file} holds a {type(content).__name__}; {_EXPECTED}.")
    return [_entry(file, repr(key), key, value) for key, value in content.items()]


def _read_lines(file: str, text: str) -> list[MetadataEntry]:
    entries = []
    for number, line in enumerate(split_lines(text), start=1):
        if not line.strip():
            continue
        where = f"line {number}"
        try:
            content = parse_json(line, pairs=_without_doubles, halves=True)
        except json.JSONDecodeError as error:
            raise DatasetError(
                f"{file}, {where}, column {error.colno}: {json_fault(error)}."
            ) from error
        except _DoubleKeyError as error:
            raise DatasetError(
                f"{file}, {where}: has {error} twice. Remove one of them."
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


def _entry(file: str, where: str, key: str, content: Any) -> MetadataEntry:
    if not isinstance(content, dict):
        raise DatasetError(f"{file}, {where}: found {content!r}; {_EXPECTED}.")
    if not key or "\0" in key:
        raise DatasetError(f"{file}, {where}: {key!r} cannot be the name of an image.")
    others = dict(content)
    texts = []
    for name in ("caption", "tags"):
        value = others.pop(name, None) or ""
        if not isinstance(value, str):
            raise DatasetError(f"{file}, {where}: {name} is {value!r}; expected text.")
        if not is_text(value):
            raise DatasetError(
                f"{file}, {where}: {name} holds half a character (half a surrogate pair), as after "
                f"cutting an emoji in two. Remove it: {value!r}"
            )
        texts.append("\n".join(split_lines(value)).strip())
    train = _size(file, where, "train_resolution", others.pop("train_resolution", None))
    if train is not None and (train.width % 8 or train.height % 8):
        raise DatasetError(
            f"{file}, {where}: train_resolution is {train}; expected multiples of 8."
        )
    stored = _size(file, where, "image_size", others.pop("image_size", None))
    return MetadataEntry(key, texts[0], texts[1], train, stored, tuple(others.items()))


def _size(file: str, where: str, name: str, value: Any) -> Size | None:
    if value is None:
        return None
    if (
        isinstance(value, list)
        and len(value) == 2
        and all(type(side) is int and 0 < side < 1 << 20 for side in value)
    ):
        return Size(*value)
    raise DatasetError(f"{file}, {where}: {name} is {value!r}; expected [width, height] in pixels.")
