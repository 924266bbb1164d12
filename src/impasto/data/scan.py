"""Finds the pictures of a folder with their words, reading headers only, and remembers them.

The index makes a second scan cheap: a file whose size and time of change are as before is not
opened again. It is derived data: deleting it costs time and nothing else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impasto import files
from impasto.data import images
from impasto.data.records import FileStamp, ImageRecord, SetAside, Size
from impasto.errors import DatasetError
from impasto.progress import Progress, SilentProgress

INDEX_VERSION = 1
_CAPTION, _TAGS = ".caption", ".txt"


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


@dataclass(frozen=True, slots=True)
class _Found:
    """A picture file, its sidecars' stamps, and what all of them looked like when listed."""

    path: str
    stamps: tuple[FileStamp | None, FileStamp | None, FileStamp | None]


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
    known = _read_index(index, folder)
    found_files = sorted(_find(str(folder), recursive=recursive), key=lambda item: item.path)
    fresh = [item for item in found_files if known.get(item.path, (None,))[0] != item.stamps]
    entries = {item.path: known[item.path] for item in found_files if item.path in known}
    entries.update(_probe_all(fresh, progress or SilentProgress()))
    if index is not None and (fresh or len(entries) != len(known)):
        _write_index(index, folder, entries)
    return _scan_of(folder, found_files, entries)


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


def _scan_of(folder: Path, found: list[_Found], entries: dict[str, tuple[Any, ...]]) -> Scan:
    records, set_aside = [], []
    for item in found:
        _, result = entries[item.path]
        if isinstance(result, str):
            set_aside.append(SetAside(Path(item.path), result))
        else:
            stamp = item.stamps[0]
            assert stamp is not None  # noqa: S101 - a found picture always has a stamp
            size, caption, tags = result
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
    sidecars: dict[str, FileStamp] = {}
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
        stamps = (_stamp(os.stat(path)), sidecars.get(stem + _CAPTION), sidecars.get(stem + _TAGS))  # noqa: PTH116 - hot path
        yield _Found(path, stamps)
    if recursive:
        for sub_folder in folders:
            yield from _find(sub_folder, recursive=True)


def _stamp(status: os.stat_result) -> FileStamp:
    return FileStamp(status.st_size, status.st_mtime_ns)


def _probe_all(found: list[_Found], progress: Progress) -> dict[str, tuple[Any, ...]]:
    """Read headers and words of each file on a few threads."""
    results: dict[str, tuple[Any, ...]] = {}
    workers = min(8, (os.cpu_count() or 1) + 2)
    with (
        progress.stage("Scanning pictures", len(found), "files") as advance,
        ThreadPoolExecutor(workers) as pool,
    ):
        for item, result in zip(found, pool.map(_probe, found, chunksize=64), strict=True):
            results[item.path] = (item.stamps, result)
            advance(1)
    return results


def _probe(item: _Found) -> tuple[Size, str, str] | str:
    """Size and words of one picture, or the reason why it cannot be used."""
    try:
        size = images.read_size(Path(item.path))
        stem = os.path.splitext(item.path)[0]  # noqa: PTH122 - hot path
        caption = _read_words(stem + _CAPTION) if item.stamps[1] else ""
        tags = _read_words(stem + _TAGS) if item.stamps[2] else ""
    except images.UnreadableImageError as error:
        return str(error)
    except UnicodeDecodeError:
        return "its caption file is not UTF-8 text"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    return size, caption, tags


def _read_words(path: str) -> str:
    with open(path, encoding="utf-8-sig") as file:  # noqa: PTH123 - hot path
        return " ".join(line.strip() for line in file if line.strip())


def _read_index(index: Path | None, folder: Path) -> dict[str, tuple[Any, ...]]:
    """Entries of an earlier scan of this folder; nothing if there is none that fits."""
    if index is None or not index.is_file():
        return {}
    try:
        stored = json.loads(index.read_text(encoding="utf-8"))
        if stored["version"] != INDEX_VERSION or stored["folder"] != str(folder.absolute()):
            return {}
        return {path: _entry_of(raw) for path, raw in stored["files"].items()}
    except (ValueError, KeyError, TypeError, OSError):
        return {}  # a damaged index is only a slower scan


def _entry_of(raw: list[Any]) -> tuple[Any, ...]:
    stamps = tuple(FileStamp(*stamp) if stamp else None for stamp in raw[0])
    if len(raw) == 2:
        return stamps, raw[1]
    return stamps, (Size(raw[1], raw[2]), raw[3], raw[4])


def _write_index(index: Path, folder: Path, entries: dict[str, tuple[Any, ...]]) -> None:
    rows: dict[str, list[Any]] = {}
    for path, (stamps, result) in entries.items():
        flat: list[Any] = [[s and [s.size_bytes, s.mtime_ns] for s in stamps]]
        if isinstance(result, str):
            rows[path] = [*flat, result]
        else:
            size, caption, tags = result
            rows[path] = [*flat, size.width, size.height, caption, tags]
    stored = {"version": INDEX_VERSION, "folder": str(folder.absolute()), "files": rows}
    files.write_text(index, json.dumps(stored, ensure_ascii=False))
