"""Remembers which files were decoded and what was wrong with them, while they stay as they are."""

from __future__ import annotations

import json
from pathlib import Path

from impasto import files
from impasto.data import images
from impasto.data.records import ImageRecord
from impasto.parsing import parse_json

_VERSION = 1


class DecodedBefore:
    """The outcome of decoding, by path, size and time of change.

    Args:
        file: Where it is kept; None keeps nothing.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._known: dict[str, tuple[int, int, str]] = {}
        self._read()

    def outcome(self, record: ImageRecord) -> str | None:
        """Why a picture cannot be decoded, empty if it can; None if that is not known."""
        size_bytes, mtime_ns, reason = self._known.get(str(record.path), (-1, -1, ""))
        stamp = record.stamp
        return reason if (size_bytes, mtime_ns) == (stamp.size_bytes, stamp.mtime_ns) else None

    def add(self, record: ImageRecord, reason: str) -> None:
        """Remember an outcome."""
        stamp = record.stamp
        self._known[str(record.path)] = (stamp.size_bytes, stamp.mtime_ns, reason)

    def write(self) -> None:
        """Keep what is known.

        Raises:
            StorageError: It could not be written.
        """
        if self._file is not None:
            content = {
                "version": [_VERSION, images.PREPROCESSING_VERSION],
                "files": {path: list(row) for path, row in self._known.items()},
            }
            files.write_text(self._file, json.dumps(content, ensure_ascii=False))

    def _read(self) -> None:
        if self._file is None or not self._file.is_file():
            return
        try:
            content = parse_json(self._file.read_text(encoding="utf-8"))
            if content["version"] != [_VERSION, images.PREPROCESSING_VERSION]:
                return
            for path, (size_bytes, mtime_ns, reason) in content["files"].items():
                if (type(size_bytes), type(mtime_ns), type(reason)) == (int, int, str):
                    self._known[path] = (size_bytes, mtime_ns, reason)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return  # only costs decoding the pictures again
