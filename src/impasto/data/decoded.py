"""Remembers which files were decoded and what was wrong with them, while they stay as they are."""

from __future__ import annotations

from pathlib import Path

from impasto.data import images
from impasto.data.records import ImageRecord
from impasto.data.remembered import recall, write_cached
from impasto.data.stages import Failure

_VERSION = [3, images.PREPROCESSING_VERSION]


class DecodeCache:
    """The outcome of decoding, by path, size and time of change.

    Args:
        file: Where it is kept; None keeps nothing.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._known: dict[str, tuple[int, int, str]] = {}
        self._passing: set[str] = set()
        if file is not None:
            for path, row in (recall(file, _VERSION) or {}).items():
                self._known[path] = tuple(row)

    def outcome(self, record: ImageRecord) -> str | None:
        """Why an image cannot be decoded, empty if it can; None if that is not known."""
        size_bytes, mtime_ns, reason = self._known.get(str(record.path), (-1, -1, ""))
        stamp = record.stamp
        return reason if (size_bytes, mtime_ns) == (stamp.size_bytes, stamp.mtime_ns) else None

    def add(self, record: ImageRecord, outcome: object) -> None:
        """Remember an outcome; a failure that says nothing of the file until `write` only."""
        reason = outcome.reason if isinstance(outcome, Failure) else ""
        self._passing.discard(str(record.path))
        if isinstance(outcome, Failure) and outcome.is_transient:
            self._passing.add(str(record.path))
        stamp = record.stamp
        self._known[str(record.path)] = (stamp.size_bytes, stamp.mtime_ns, reason)

    def write(self) -> None:
        """Write what is known of the decoded images.

        Raises:
            StorageError: It could not be written.
        """
        if self._file is not None:
            rows = {p: list(row) for p, row in self._known.items() if p not in self._passing}
            write_cached(self._file, _VERSION, rows)
