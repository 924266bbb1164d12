"""Finds the pictures of a folder with their words, reading headers only, and remembers them.

The index makes a second scan cheap: a file whose size and time of change are as before is not
opened again. It is derived data: deleting it costs time and nothing else.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from impasto import files
from impasto.data import images
from impasto.data.records import FileStamp, ImageRecord, SetAside, Size
from impasto.errors import DatasetError
from impasto.progress import Progress, SilentProgress

INDEX_VERSION = 1
_CAPTION, _TAGS = ".caption", ".txt"
_NO_ENTRY: list[Any] = [None]
_NO_FILE = (0, 0)


@dataclass(frozen=True)
class Scan:
    """What a folder holds: usable pictures, and those set aside with their reasons."""

    folder: Path
    records: tuple[ImageRecord, ...]
    set_aside: tuple[SetAside, ...]

    @property
    def uncaptioned(self) -> int:
        """How many usable pictures have no words at all."""
        return sum(not record.text for record in self.records)


class _Found(NamedTuple):
    """A picture file, and size and time of change of it, its `.caption` and its `.txt`.

    Plain numbers in a list, as the index has them: a second scan of 10,000 files compares them
    and makes nothing of them.
    """

    path: str
    stamps: list[int]


# An entry of the index: the stamps, and either [width, height, caption, tags] or [reason].
_Entry = list[Any]


def scan_folder(
    folder: Path,
    *,
    recursive: bool = True,
    index: Path | None = None,
    progress: Progress | None = None,
) -> Scan:
    """List a folder's pictures in order of their paths, with `.caption` and `.txt` beside them.

    Hidden files and folders and AppleDouble files (`._x`) are passed over.

    Args:
        folder: Where to look.
        recursive: Also look in sub-folders; links to folders are not followed.
        index: A file to keep results in between scans; None keeps nothing.
        progress: Where to show how far it is.

    Raises:
        DatasetError: The folder is missing, or holds no usable picture.
    """
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise DatasetError(
            f"The picture folder {folder} is not there (found: {found}). Give the path of a folder "
            f"that holds your pictures."
        )
    with _no_cycle_collection():
        known = _read_index(index, folder)
        found_files = sorted(_find(str(folder), recursive=recursive), key=lambda item: item.path)
    fresh = [item for item in found_files if known.get(item.path, _NO_ENTRY)[0] != item.stamps]
    entries = {item.path: known[item.path] for item in found_files if item.path in known}
    entries.update(_probe_all(fresh, progress or SilentProgress()))
    if index is not None and (fresh or len(entries) != len(known)):
        _write_index(index, folder, entries)
    with _no_cycle_collection():
        return _scan_of(folder, found_files, entries)


@contextlib.contextmanager
def _no_cycle_collection() -> Iterator[None]:
    """Spare Python's collector while many small objects are made, none of them in a cycle.

    It would look at all of them dozens of times: 40 percent of a second scan.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def decode_all(scan: Scan, progress: Progress | None = None) -> Scan:
    """Decode every picture of a scan, and set aside those that their headers did not betray.

    Raises:
        DatasetError: None is left.
    """
    progress = progress or SilentProgress()
    kept, set_aside = [], list(scan.set_aside)
    with (
        progress.stage("Decoding pictures", len(scan.records), "pictures") as advance,
        ThreadPoolExecutor(os.cpu_count() or 1) as pool,
    ):
        faults = pool.map(_decoding_fault, scan.records)
        for record, fault in zip(scan.records, faults, strict=True):
            if fault is None:
                kept.append(record)
            else:
                set_aside.append(SetAside(record.path, fault))
            advance(1)
    if not kept:
        raise DatasetError(_nothing_usable(scan.folder, set_aside))
    return Scan(scan.folder, tuple(kept), tuple(set_aside))


def _decoding_fault(record: ImageRecord) -> str | None:
    try:
        images.read_rgb(record.path)
    except images.UnreadableImageError as error:
        return str(error)
    return None


def _scan_of(folder: Path, found: list[_Found], entries: dict[str, _Entry]) -> Scan:
    records, set_aside = [], []
    for item in found:
        _, result = entries[item.path]
        if len(result) == 1:
            set_aside.append(SetAside(Path(item.path), result[0]))
        else:
            width, height, caption, tags = result
            stamp = FileStamp(item.stamps[0], item.stamps[1])
            size = Size(width, height)
            records.append(ImageRecord(Path(item.path), size, stamp, caption, tags))
    if not records:
        raise DatasetError(_nothing_usable(folder, set_aside))
    return Scan(folder, tuple(records), tuple(set_aside))


def _nothing_usable(folder: Path, set_aside: list[SetAside]) -> str:
    if not set_aside:
        kinds = " ".join(sorted(ext[1:] for ext in images.EXTENSIONS))
        return (
            f"The folder {folder} holds no pictures. Expected files ending in {kinds} (upper or "
            f"lower case), each with a .txt or .caption of the same name beside it."
        )
    first = set_aside[0]
    return (
        f"None of the {len(set_aside)} pictures in {folder} can be read; the first is "
        f"{first.path.name}: {first.reason}."
    )


def _find(folder: str, *, recursive: bool) -> Iterator[_Found]:
    """Yield the picture files below `folder` with the stamps of the files that belong to them."""
    pictures: list[tuple[str, str]] = []
    sidecars: dict[str, tuple[int, int]] = {}
    folders: list[str] = []
    with os.scandir(folder) as listing:
        for entry in listing:
            name = entry.name
            if name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
                continue
            stem, extension = os.path.splitext(entry.path)  # noqa: PTH122 - hot path
            extension = extension.lower()
            if extension in images.EXTENSIONS:
                pictures.append((entry.path, stem))
            elif extension in (_CAPTION, _TAGS):
                sidecars[stem + extension] = _stamp(entry.stat())
    for path, stem in pictures:
        own = _stamp(os.stat(path))  # noqa: PTH116 - hot path
        caption = sidecars.get(stem + _CAPTION, _NO_FILE)
        yield _Found(path, [*own, *caption, *sidecars.get(stem + _TAGS, _NO_FILE)])
    if recursive:
        for sub_folder in folders:
            yield from _find(sub_folder, recursive=True)


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def _probe_all(found: list[_Found], progress: Progress) -> dict[str, _Entry]:
    """Read headers and words of each file on a few threads."""
    results: dict[str, _Entry] = {}
    workers = min(8, (os.cpu_count() or 1) + 2)
    with (
        progress.stage("Scanning pictures", len(found), "files") as advance,
        ThreadPoolExecutor(workers) as pool,
    ):
        for item, result in zip(found, pool.map(_probe, found, chunksize=64), strict=True):
            results[item.path] = [item.stamps, result]
            advance(1)
    return results


def _probe(item: _Found) -> list[Any]:
    """Size and words of one picture, or the reason why it cannot be used."""
    has_caption, has_tags = item.stamps[3] != 0, item.stamps[5] != 0
    try:
        size = images.read_size(Path(item.path))
        stem = os.path.splitext(item.path)[0]  # noqa: PTH122 - hot path
        caption = _read_words(stem + _CAPTION) if has_caption else ""
        tags = _read_words(stem + _TAGS) if has_tags else ""
    except images.UnreadableImageError as error:
        return [str(error)]
    except UnicodeDecodeError:
        return ["its caption file is not UTF-8 text"]
    except OSError as error:
        return [f"cannot be read ({error.strerror or error})"]
    return [size.width, size.height, caption, tags]


def _read_words(path: str) -> str:
    with open(path, encoding="utf-8-sig") as file:  # noqa: PTH123 - hot path
        return " ".join(line.strip() for line in file if line.strip())


def _read_index(index: Path | None, folder: Path) -> dict[str, _Entry]:
    """Entries of an earlier scan of this folder; nothing if there is none that fits."""
    if index is None or not index.is_file():
        return {}
    try:
        stored = json.loads(index.read_text(encoding="utf-8"))
        if stored["version"] != INDEX_VERSION or stored["folder"] != str(folder.absolute()):
            return {}
        entries: dict[str, _Entry] = stored["files"]
        return entries if all(len(entry) == 2 for entry in entries.values()) else {}
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        return {}  # a damaged index is only a slower scan


def _write_index(index: Path, folder: Path, entries: dict[str, _Entry]) -> None:
    stored = {"version": INDEX_VERSION, "folder": str(folder.absolute()), "files": entries}
    files.write_text(index, json.dumps(stored, ensure_ascii=False))
