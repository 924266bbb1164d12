"""Writes captions to the files beside images: prose to `.caption`, tags to `.txt`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from impasto import files, storage_errors
from impasto.data.folders.beside import SidecarLookup
from impasto.data.folders.listing import CAPTION, TAGS
from impasto.data.folders.metadata import keep_backup
from impasto.data.records import ImageRecord, SkippedFile
from impasto.errors import StorageError
from impasto.parsing import read_caption_file
from impasto.write_targets import why_not_written


@dataclass(frozen=True)
class WrittenSidecars:
    """The outcome of writing caption files.

    Attributes:
        files: Number of files written.
        differing: Existing files with other content, which were left alone.
        refused: Files that cannot be written, with reasons: a link out of the dataset, a name that
            is too long.
        backups: Number of written files that replaced another, which is kept as `.bak`.
    """

    files: int
    differing: tuple[Path, ...]
    backups: int
    refused: tuple[SkippedFile, ...] = ()


def write_sidecars(records: Iterable[ImageRecord], *, overwrite: bool) -> WrittenSidecars:
    """Write captions and tags beside their images; an image without either gets no file.

    A file that exists in another letter case (`a.TXT`) is written under that name.

    Raises:
        StorageError: The disk is full; the file is unchanged.
    """
    written, backups, differing, refused = 0, 0, [], []
    beside = SidecarLookup()
    for record in records:
        for ending, text in ((CAPTION, record.caption), (TAGS, record.tags)):
            path = beside.file(record.path, ending)
            if not text or _says(path) == text.strip():
                continue
            reason = why_not_written(path, [record.subset.root])
            if reason:
                refused.append(SkippedFile(path, reason))
                continue
            try:
                if path.exists() and not overwrite:
                    differing.append(path)
                    continue
                backups += keep_backup(path) is not None
                files.rewrite_text(path, text + "\n")
            except (OSError, StorageError) as error:
                if not storage_errors.is_file_specific(error):
                    raise
                refused.append(
                    SkippedFile(path, f"cannot be written ({storage_errors.cause_of(error)})")
                )
                continue
            written += 1
    return WrittenSidecars(written, tuple(differing), backups, tuple(refused))


def _says(path: Path) -> str | None:
    try:
        return read_caption_file(path).strip()
    except (OSError, UnicodeDecodeError):
        return None
