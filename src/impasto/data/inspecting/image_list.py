"""The list of a dataset's images as a file: one line for each, used or skipped, with what is known.

`impasto dataset list` writes it and the studio reads it, so that a page about 50,000 images opens
none of them. The first line is an object about the list itself, each other one an image. It is
derived data: deleting it costs time and nothing else.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from impasto import files
from impasto.parsing import parse_json

LIST_VERSION = 1
_LONGEST_LINE = 8 << 20  # bytes; a caption has a mebibyte at most, and JSON may write six for each


class ListedImage(NamedTuple):
    """An image file of a dataset.

    Attributes:
        path: Where it is, below the dataset with slashes; whole where it is not below it.
        size_bytes: Bytes of the file.
        mtime_ns: When it was changed last, in nanoseconds.
        width: Pixels as a person sees it; 0 where it cannot be read.
        height: The same.
        bucket: The bucket it goes to, such as `512x768`; empty where it is skipped.
        resized: Width and height to which it is resized ahead of the crop.
        crop: What is kept of that: left, top, right, bottom in pixels.
        cropped: The share of the area that is cropped away, in [0, 1).
        enlarged: By what it is enlarged, over 1; 0 where it is not.
        caption: The caption without chance; empty where there is none.
        tags: How many tags, or parts between separators, the caption has.
        captioned: Whether it has words at all.
        skipped: Why it cannot be used; empty where it can.
        copies: The number of the group of files of the same content; 0 for none.
        near: The number of the group that looks nearly the same; 0 for none.
        mask: The file with its mask, named as `path`; empty for none.
        sha256: The hash of its content; empty where it was not read.
    """

    path: str
    size_bytes: int = 0
    mtime_ns: int = 0
    width: int = 0
    height: int = 0
    bucket: str = ""
    resized: tuple[int, ...] = ()
    crop: tuple[int, ...] = ()
    cropped: float = 0.0
    enlarged: float = 0.0
    caption: str = ""
    tags: int = 0
    captioned: bool = False
    skipped: str = ""
    copies: int = 0
    near: int = 0
    mask: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class ImageList:
    """All images of a dataset.

    Attributes:
        images: They, in the order of their paths.
        options: The settings of buckets that were given, by the names of the options.
        folders: Folders that were looked into, by their paths below the dataset, and when they were
            changed last, in nanoseconds: the list is of now while those are as they were.
        compared: How many images were compared with each other, by content and looks.
        unused: What looks like images or words and is not used: path and reason.
    """

    images: list[ListedImage]
    options: Mapping[str, Any] = field(default_factory=dict)
    folders: Mapping[str, int] = field(default_factory=dict)
    compared: int = 0
    unused: list[tuple[str, str]] = field(default_factory=list)


def write_image_list(path: Path, found: ImageList) -> None:
    """Write a list durably, all of it or nothing.

    Raises:
        StorageError: It could not be written.
    """
    with files.replace_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        for line in lines_of(found):
            file.write(f"{line}\n")


def lines_of(found: ImageList) -> Iterable[str]:
    """The lines of a list: an object about it, then one for each image."""
    yield files.json_text(
        {
            "version": LIST_VERSION,
            "options": found.options,
            "folders": found.folders,
            "compared": found.compared,
            "unused": found.unused,
        }
    )
    for image in found.images:
        yield files.json_text(image._asdict())


def read_image_list(path: Path) -> ImageList | None:
    """The list of a file; None where there is none, or one of another version.

    Lines that are damaged are left out.
    """
    try:
        with path.open("rb") as file:
            head = _object_of(file.readline(_LONGEST_LINE))
            if head is None or head.get("version") != LIST_VERSION:
                return None
            images = [image for line in file if (image := _image_of(line)) is not None]
    except OSError:
        return None
    return _list_of(head, images)


def caption_tags(caption: str, separator: str = ",") -> list[str]:
    """The tags of a caption, each once, in their order."""
    pieces = (piece.strip() for piece in caption.replace("\n", separator).split(separator))
    return list(dict.fromkeys(piece for piece in pieces if piece))


def is_hidden(relative: str) -> bool:
    """Whether a path below a dataset is hidden, or below a hidden folder: scans pass those over."""
    return any(name.startswith(".") for name in relative.split("/"))


def changed_at(folder: Path) -> int:
    """When a folder was changed last, in nanoseconds; 0 where that cannot be seen."""
    try:
        return folder.stat().st_mtime_ns
    except (OSError, ValueError):  # a name with a NUL, in a list of somebody else's
        return 0


def folders_below(root: Path, most: int = 2000) -> dict[str, int]:
    """The folder, and those below that are not hidden, with the times of their last change.

    Args:
        root: The folder; its own name here is `.`.
        most: So many at most: beyond that, changes are not noticed.
    """
    found: dict[str, int] = {}
    for folder, inner, _ in os.walk(root):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        if len(found) >= most:
            break
        found[Path(folder).relative_to(root).as_posix()] = changed_at(Path(folder))
    return found


_NAMES = ListedImage._fields
_ALL = frozenset(_NAMES)
_KINDS = (str, *(list if d == () else type(d) for d in ListedImage._field_defaults.values()))
_LISTS = tuple(n for n, kind in enumerate(_KINDS) if kind is list)
_FLOATS = tuple(n for n, kind in enumerate(_KINDS) if kind is float)


def _image_of(line: bytes) -> ListedImage | None:
    """The image of a line; None where anything in it is missing or of another kind."""
    content = _object_of(line)
    if content is None or content.keys() != _ALL:
        return None
    values = [content[name] for name in _NAMES]
    if tuple(map(type, values)) != _KINDS or not all(math.isfinite(values[n]) for n in _FLOATS):
        return None
    for n in _LISTS:
        if not all(type(item) is int for item in values[n]):
            return None
        values[n] = tuple(values[n])
    return ListedImage._make(values)


def _list_of(head: Mapping[str, Any], images: list[ListedImage]) -> ImageList:
    options, folders, compared = head.get("options"), head.get("folders"), head.get("compared")
    unused = head.get("unused")
    return ImageList(
        images,
        options if isinstance(options, dict) else {},
        {str(k): v for k, v in folders.items() if type(v) is int}
        if isinstance(folders, dict)
        else {},
        compared if type(compared) is int else 0,
        [(str(pair[0]), str(pair[1])) for pair in unused if _is_pair(pair)]
        if isinstance(unused, list)
        else [],
    )


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2


def _object_of(line: bytes) -> dict[str, Any] | None:
    try:
        found = parse_json(line, halves=True)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
