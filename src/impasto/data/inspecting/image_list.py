"""The list of a dataset's images as a file: one line per image, used or skipped.

`impasto dataset list` writes it and the studio reads it, so that a page about 50,000 images opens
none of them. The first line is an object about the list itself, each other line an image. It is
derived data: deleting it only costs the time to list the images again.
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
_LONGEST_LINE = 8 << 20  # bytes; a caption has at most 1 MiB, and JSON may need 6 bytes for each


class ListedImage(NamedTuple):
    """An image file of a dataset.

    Attributes:
        path: Its path below the dataset, with slashes; the whole path if it is not below it.
        size_bytes: Size of the file in bytes.
        mtime_ns: Modification time in nanoseconds.
        width: Width in pixels, upright; 0 if the file is unreadable.
        height: Height in pixels, upright; 0 if the file is unreadable.
        bucket: Its bucket, such as `512x768`; empty if the image is skipped.
        resized: Width and height to which it is resized before the crop.
        crop: The part used: left, top, right, bottom in pixels of the resized image.
        cropped: The fraction of the area that is cropped away, in [0, 1).
        enlarged: The factor by which it is enlarged, over 1; 0 if it is not enlarged.
        caption: The caption without its random parts; empty if there is none.
        tags: How many tags, or parts between separators, the caption has.
        captioned: Whether it has a caption.
        skipped: Why it cannot be used; empty if it can.
        copies: The number of its group of files with the same content; 0 for none.
        near: The number of its group of images that look nearly the same; 0 for none.
        mask: The file with its mask, named as `path`; empty for none.
        sha256: The hash of its content; empty if the content was not read.
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
        images: The images, in the order of their paths.
        options: The bucket settings that were given, by option name.
        folders: Folders that were scanned, by their paths below the dataset, and their modification
            times in nanoseconds: the list is up to date while these are unchanged.
        compared: How many images were compared with each other, by content and looks.
        unused: Files that look like images or captions and are not used: path and reason.
    """

    images: list[ListedImage]
    options: Mapping[str, Any] = field(default_factory=dict)
    folders: Mapping[str, int] = field(default_factory=dict)
    compared: int = 0
    unused: list[tuple[str, str]] = field(default_factory=list)


def write_image_list(path: Path, found: ImageList) -> None:
    """Write a list durably and atomically.

    Raises:
        StorageError: The list could not be written.
    """
    with files.replace_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        for line in lines_of(found):
            file.write(f"{line}\n")


def lines_of(found: ImageList) -> Iterable[str]:
    """Yield the lines of a list: an object about the list, then one line per image."""
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
    """Read a list from a file; None if there is none, or one of another version.

    Damaged lines are left out.
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
    """Return the tags of a caption, each once, in their order."""
    pieces = (piece.strip() for piece in caption.replace("\n", separator).split(separator))
    return list(dict.fromkeys(piece for piece in pieces if piece))


def is_hidden(relative: str) -> bool:
    """Return whether a path below a dataset is hidden or in a hidden folder: scans skip these."""
    return any(name.startswith(".") for name in relative.split("/"))


def changed_at(folder: Path) -> int:
    """Return the modification time of a folder in nanoseconds; 0 if it cannot be read."""
    try:
        return folder.stat().st_mtime_ns
    except (OSError, ValueError):  # a name with a NUL, in a list made elsewhere
        return 0


def folders_below(root: Path, most: int = 2000) -> dict[str, int]:
    """Return `root` and its folders that are not hidden, with their modification times.

    Args:
        root: The folder; its own name here is `.`.
        most: Most folders returned; changes beyond them are not noticed.

    Returns:
        Paths below `root` -> times in nanoseconds.
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
    """Parse a line; None if a field is missing or of another type."""
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
