"""Caches which files could be decoded, and the faults of others, while the files are unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from impasto.data.columns.keyed import KeyedTable
from impasto.data.columns.tables import FormerFile, rows_of
from impasto.data.engines.stages import Failure
from impasto.data.pixels import images
from impasto.data.record_table import RecordTable
from impasto.data.records import FileStamp, ImageRecord

_VERSION = [4, images.PREPROCESSING_VERSION]
_FORMER_VERSION = [3, images.PREPROCESSING_VERSION]
_SCHEMA = pa.schema(
    [
        ("path", pa.large_string()),
        ("size_bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("fault", pa.large_string()),
    ]
)
_AT_ONCE = 1 << 18


class DecodeCache:
    """The outcome of decoding, by path, size and modification time.

    Args:
        file: The JSON file of earlier versions; the table that replaces it has the extension
            `.table`. None stores nothing.
    """

    def __init__(self, file: Path | None) -> None:
        former = None if file is None else FormerFile(file, _FORMER_VERSION, _of_former)
        self._known = KeyedTable(file, _SCHEMA, _VERSION, former)
        self._passing: dict[str, tuple[FileStamp, str]] = {}

    def outcomes(self, records: RecordTable) -> list[str | None]:
        """Return why each image cannot be decoded: empty if it can, None if unknown."""
        found: list[str | None] = []
        for start in range(0, len(records), _AT_ONCE):
            portion = records[start : start + _AT_ONCE]
            paths = portion.text("path")
            known = self._known.look_up(paths)
            stamps = zip(
                portion.numbers["size_bytes"].tolist(),
                portion.numbers["mtime_ns"].tolist(),
                strict=True,
            )
            for path, stamp in zip(paths, stamps, strict=True):
                passing = self._passing.get(path)
                if passing is not None and passing[0] == FileStamp(*stamp):
                    found.append(passing[1])
                else:
                    *was, fault = known.get(path, (-1, -1, ""))
                    found.append(fault if tuple(was) == stamp else None)
        return found

    def add(self, record: ImageRecord, outcome: object) -> None:
        """Record an outcome; a transient failure is remembered in this object only.

        Raises:
            StorageError: The outcome could not be written.
        """
        path, stamp = str(record.path), record.stamp
        self._passing.pop(path, None)
        if isinstance(outcome, Failure) and outcome.is_transient:
            self._passing[path] = (stamp, outcome.reason)
            return
        fault = outcome.reason if isinstance(outcome, Failure) else ""
        self._known.add(path, stamp.size_bytes, stamp.mtime_ns, fault)

    def write(self) -> None:
        """Write the outcomes that are not on disk yet.

        Raises:
            StorageError: They could not be written.
        """
        self._known.finish()


def _of_former(content: Any) -> pa.Table:
    """Return the rows of a former version's JSON file: path -> [size, modification time, fault]."""
    return rows_of(_SCHEMA, [(path, *row) for path, row in content.items()])
