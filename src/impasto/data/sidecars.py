"""Writes the words of pictures to the files beside them: prose to `.caption`, tags to `.txt`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from impasto import files
from impasto.data.listing import CAPTION, TAGS
from impasto.data.metadata import keep_backup
from impasto.data.records import ImageRecord


@dataclass(frozen=True)
class WrittenSidecars:
    """What became of them.

    Attributes:
        files: How many were written.
        differing: Those that were there, say something else, and were left alone.
        backups: How many of those written replaced another, which is kept as `.bak`.
    """

    files: int
    differing: tuple[Path, ...]
    backups: int


def write_sidecars(records: Iterable[ImageRecord], *, overwrite: bool) -> WrittenSidecars:
    """Write captions and tags beside their pictures; a picture without words gets no file.

    Raises:
        StorageError: A file could not be written; it is as it was before.
    """
    written, backups, differing = 0, 0, []
    for record in records:
        for ending, text in ((CAPTION, record.caption), (TAGS, record.tags)):
            path = record.path.with_suffix(ending)
            if not text or _says(path) == text.strip():
                continue
            if path.exists() and not overwrite:
                differing.append(path)
                continue
            backups += keep_backup(path) is not None
            files.write_text(path, text + "\n")
            written += 1
    return WrittenSidecars(written, tuple(differing), backups)


def _says(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError):
        return None
