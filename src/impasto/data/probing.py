"""Reads sizes from headers and words from sidecars, and remembers both.

The index makes a second scan cheap: a file whose size and time of change are as before is not
opened again. It is derived data: deleting it costs time and nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from impasto.data import images
from impasto.data.cuts import read_cut
from impasto.data.listing import FoundImage
from impasto.data.listing import Sidecars as Sidecars
from impasto.data.records import FileStamp, ImageRecord, Size, SkippedFile
from impasto.data.remembered import recall, write_cached
from impasto.data.stages import Failure, LocalExecutor, chunks, default_workers
from impasto.data.subsets import Subset
from impasto.errors import StorageError
from impasto.parsing import decode_caption, split_lines
from impasto.progress import Progress

INDEX_VERSION = 5
_FILES_AT_ONCE = 64
_LARGEST_CAPTION = 2**20  # bytes; a caption has some hundreds
_NO_ENTRY: list[Any] = [None]


class Probe:
    """Stage: files -> [width, height, rotated, caption, tags] of each."""

    def __call__(self, batch: Sequence[FoundImage]) -> list[list[Any] | Failure]:
        """Probe a batch of files; what cannot be read is a failure with its reason."""
        return [self._probe(item) for item in batch]

    def _probe(self, item: FoundImage) -> list[Any] | Failure:
        try:
            size, rotated = images.read_header(Path(item.path))
            caption, tags = (_read_caption(file) if file else "" for file in item.words)
        except (images.UnreadableImageError, OSError) as error:
            return images.failure_of(error)
        return [size.width, size.height, int(rotated), caption, tags]


class ScanIndex:
    """What earlier scans found, by path.

    Args:
        file: Where it is kept; None keeps nothing.
        key: What the entries belong to, such as the folder: entries of another are not used.
    """

    def __init__(self, file: Path | None, key: str) -> None:
        self._file, self._version = file, [INDEX_VERSION, key]
        self._entries: Entries = (recall(file, self._version) if file is not None else None) or {}

    def probe(self, found: Sequence[FoundImage], progress: Progress) -> Entries:
        """Entries of all files; only those that changed are opened."""
        known = self._entries
        usable = [item for item in found if not item.fault]
        fresh = [item for item in usable if known.get(item.path, _NO_ENTRY)[0] != item.stamps]
        entries = {item.path: known[item.path] for item in usable if item.path in known}
        passing: set[str] = set()
        executor = LocalExecutor(Probe(), workers=default_workers() + 1)
        with progress.stage("Scanning images", len(fresh), "files") as advance:
            for outcomes in executor.run(chunks(fresh, _FILES_AT_ONCE)):
                for item, outcome in outcomes:
                    result = [outcome.reason] if isinstance(outcome, Failure) else outcome
                    entries[item.path] = [item.stamps, result]
                    if isinstance(outcome, Failure) and outcome.is_transient:
                        passing.add(item.path)
                advance(len(outcomes))
        kept = {path: entry for path, entry in entries.items() if path not in passing}
        if self._file is not None and (len(fresh) > len(passing) or len(kept) != len(known)):
            try:
                write_cached(self._file, self._version, kept)
            except StorageError as error:  # what was found is right all the same
                progress.note(f"The next scan has to look at all files again: {error}")
        self._entries = kept
        return entries


Entries = dict[str, list[Any]]
"""Path -> [stamps, [width, height, rotated, caption, tags] or [reason]]."""


def split_usable(
    found: Iterable[FoundImage], entries: Entries, subset: Subset
) -> tuple[list[ImageRecord], list[SkippedFile]]:
    """Records of what can be used, and the rest with its reasons."""
    records, set_aside = [], []
    for item in found:
        result: list[Any] = [item.fault] if item.fault else entries[item.path][1]
        if len(result) == 1:
            set_aside.append(SkippedFile(Path(item.path), result[0]))
            continue
        width, height, rotated, caption, tags = result
        size, stamp = Size(width, height), FileStamp(item.stamps[0], item.stamps[1])
        try:
            cut = read_cut(Path(item.crop), size) if item.crop else None
        except images.UnreadableImageError as error:
            set_aside.append(SkippedFile(Path(item.path), str(error)))
            continue
        seen = cut.box.size if cut else size
        words = "" if any(item.words) else subset.class_tokens  # an empty file is a caption too
        record = ImageRecord(
            Path(item.path), seen, stamp, caption, tags, bool(rotated), None, subset, cut, words
        )
        records.append(record)
    return records, set_aside


def _read_caption(path: str) -> str:
    """The lines of a file that are not blank.

    Raises:
        UnreadableImageError: It is in another encoding, such as Latin-1, which cannot be told; or
            far too large.
    """
    with open(path, "rb") as file:  # noqa: PTH123 - hot path
        content = file.read(_LARGEST_CAPTION + 1)
    if len(content) > _LARGEST_CAPTION:
        raise images.UnreadableImageError(
            f"its caption {os.path.basename(path)} has over {_LARGEST_CAPTION >> 20} MiB, which no "  # noqa: PTH119
            f"words have; give it another name if it is something else"
        )
    try:
        text = decode_caption(content)
    except UnicodeDecodeError as error:
        raise images.UnreadableImageError(
            f"its caption {os.path.basename(path)} is not UTF-8 text "  # noqa: PTH119 - hot path
            f"(byte {error.start}); save it as UTF-8"
        ) from error
    return "\n".join(line for line in map(str.strip, split_lines(text)) if line)
