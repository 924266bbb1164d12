"""Reads sizes from headers and words from sidecars, and remembers both.

The index makes a second scan cheap: a file whose size and time of change are as before is not
opened again. It is derived data: deleting it costs time and nothing else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from impasto import files
from impasto.data import images
from impasto.data.records import FileStamp, ImageRecord, SetAside, Size
from impasto.data.stages import Failure, LocalExecutor, chunks, default_workers
from impasto.data.subsets import Subset
from impasto.progress import Progress

INDEX_VERSION = 2
CAPTION, TAGS = ".caption", ".txt"
NO_FILE = (0, 0)
_FILES_AT_ONCE = 64
_NO_ENTRY: list[Any] = [None]


class Sidecars(NamedTuple):
    """The endings of the files with a picture's words; an empty one stands for none."""

    caption: str = CAPTION
    tags: str = TAGS


class Found(NamedTuple):
    """A picture file, and size and time of change of it, its caption and its tags.

    Plain numbers in a list, as the index has them: a second scan of 10,000 files compares them and
    makes nothing of them. Instead of them, the reason why the file cannot even be looked at.
    """

    path: str
    stamps: list[int]
    fault: str = ""


class Probe:
    """Stage: files -> [width, height, rotated, caption, tags] of each."""

    def __init__(self, sidecars: Sidecars) -> None:
        self._sidecars = sidecars

    def __call__(self, batch: Sequence[Found]) -> list[list[Any] | Failure]:
        """Probe a batch of files; what cannot be read is a failure with its reason."""
        return [self._probe(item) for item in batch]

    def _probe(self, item: Found) -> list[Any] | Failure:
        if item.fault:
            return Failure(item.fault)
        try:
            size, rotated = images.read_header(Path(item.path))
            stem = os.path.splitext(item.path)[0]  # noqa: PTH122 - hot path
            caption = _read_words(stem + self._sidecars.caption) if item.stamps[3] else ""
            tags = _read_words(stem + self._sidecars.tags) if item.stamps[5] else ""
        except images.UnreadableImageError as error:
            return Failure(str(error))
        except UnicodeDecodeError:
            return Failure("its caption file is not UTF-8 text")
        except OSError as error:
            return Failure(f"cannot be read ({error.strerror or error})")
        return [size.width, size.height, int(rotated), caption, tags]


class ScanIndex:
    """What earlier scans found, by path.

    Args:
        file: Where it is kept; None keeps nothing.
        key: What the entries belong to, such as the folder: entries of another are not used.
    """

    def __init__(self, file: Path | None, key: str) -> None:
        self._file, self._key = file, key
        self._entries = self._read()

    def probe(self, found: Sequence[Found], sidecars: Sidecars, progress: Progress) -> Entries:
        """Entries of all files; only those that changed are opened."""
        fresh = [
            item for item in found if self._entries.get(item.path, _NO_ENTRY)[0] != item.stamps
        ]
        known = self._entries
        entries = {item.path: known[item.path] for item in found if item.path in known}
        executor = LocalExecutor(Probe(sidecars), workers=default_workers() + 1)
        with progress.stage("Scanning pictures", len(fresh), "files") as advance:
            for outcomes in executor.run(chunks(fresh, _FILES_AT_ONCE)):
                for item, outcome in outcomes:
                    result = [outcome.reason] if isinstance(outcome, Failure) else outcome
                    entries[item.path] = [item.stamps, result]
                advance(len(outcomes))
        if self._file is not None and (fresh or len(entries) != len(known)):
            stored = {"version": INDEX_VERSION, "key": self._key, "files": entries}
            files.remember_json(self._file, stored)
        self._entries = entries
        return entries

    def _read(self) -> Entries:
        if self._file is None or not self._file.is_file():
            return {}
        try:
            stored = json.loads(self._file.read_text(encoding="utf-8"))
            if stored["version"] != INDEX_VERSION or stored["key"] != self._key:
                return {}
            entries: Entries = stored["files"]
            return entries if all(len(entry) == 2 for entry in entries.values()) else {}
        except (ValueError, KeyError, TypeError, AttributeError, OSError):
            return {}  # a damaged index is only a slower scan


Entries = dict[str, list[Any]]
"""Path -> [stamps, [width, height, rotated, caption, tags] or [reason]]."""


def sort_out(
    found: Iterable[Found], entries: Entries, subset: Subset
) -> tuple[list[ImageRecord], list[SetAside]]:
    """Records of what can be used, and the rest with its reasons."""
    records, set_aside = [], []
    for item in found:
        result = entries[item.path][1]
        if len(result) == 1:
            set_aside.append(SetAside(Path(item.path), result[0]))
            continue
        width, height, rotated, caption, tags = result
        stamp = FileStamp(item.stamps[0], item.stamps[1])
        record = ImageRecord(
            Path(item.path), Size(width, height), stamp, caption, tags, bool(rotated), None, subset
        )
        records.append(record)
    return records, set_aside


def _read_words(path: str) -> str:
    """The lines of a file that are not blank."""
    with open(path, encoding="utf-8-sig") as file:  # noqa: PTH123 - hot path
        return "\n".join(line.strip() for line in file if line.strip())
