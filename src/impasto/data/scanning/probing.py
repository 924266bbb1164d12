"""Reads sizes from headers and captions from sidecar files, and caches both.

The index makes a second scan cheap: a file whose size and modification time are unchanged is not
opened again. It is derived data: deleting it only costs the time of a new scan.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from impasto.data.columns.appender import Appender
from impasto.data.columns.arrow_columns import is_filled, texts_at, values_of
from impasto.data.columns.tables import FormerFile, TableFolder, newest_rows, rows_of, take_rows
from impasto.data.engines.engine import LOCAL, Engine
from impasto.data.engines.stages import Failure, default_workers, in_chunks
from impasto.data.folders.found import STAMPS, FoundTable
from impasto.data.folders.found_image import FoundImage
from impasto.data.folders.listing import Sidecars as Sidecars
from impasto.data.pixels import images
from impasto.data.pixels.cuts import read_cut
from impasto.data.record_columns import TEXTS, Use, cut_column
from impasto.data.record_table import RecordTable
from impasto.data.records import Cut, Size, SkippedFile
from impasto.data.scanning.probe_stage import Probe as Probe
from impasto.data.subsets import Subset
from impasto.errors import StorageError
from impasto.progress import Progress

INDEX_VERSION, _FORMER_VERSION = 6, 5
_ROWS_AT_ONCE = 100_000
_FILES_AT_ONCE = 64
_NO_ENTRY: list[Any] = [None]


INDEX = pa.schema(
    [
        ("path", pa.large_string()),
        *((f"stamp{number}", pa.int64()) for number in range(STAMPS)),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("rotated", pa.uint8()),
        ("caption", pa.large_string()),
        ("tags", pa.large_string()),
        ("fault", pa.large_string()),
    ]
)
"""The columns stored per file: its stamps, and what was read or, in `fault`, why it is unusable."""


class Entries:
    """The results of probing files: rows of a table, which stays memory-mapped if nothing changed.

    Args:
        table: Rows of `INDEX`.
        rows: [files]: the row number of each file.
        passing: The indices of files with transient faults, such as an error of the disk.
    """

    def __init__(
        self, table: pa.Table, rows: np.ndarray, passing: Collection[int] = frozenset()
    ) -> None:
        count = len(rows)
        is_slice = bool(count) and rows[-1] - rows[0] == count - 1 and (np.diff(rows) == 1).all()
        self._table = table.slice(int(rows[0]), count) if is_slice else table
        self.rows = None if is_slice else rows
        self.passing = passing

    @property
    def texts(self) -> pa.Table:
        """Paths, captions and tags, in the order of the table."""
        return self._table.select(TEXTS.names).replace_schema_metadata(None)

    def column(self, name: str) -> np.ndarray:
        """Return [files]: one column of the numbers that probing found."""
        values = values_of(self._table.column(name))
        return values if self.rows is None else values[self.rows]

    def faults(self) -> dict[int, str]:
        """Map the index of each unusable file to the reason."""
        is_faulty = is_filled(self._table.column("fault"))
        indices = np.flatnonzero(is_faulty if self.rows is None else is_faulty[self.rows])
        rows = indices if self.rows is None else self.rows[indices]
        faults = texts_at(self._table.column("fault"), rows)
        return dict(zip(indices.tolist(), faults, strict=True))


class ScanIndex:
    """The results of earlier scans, by path.

    Args:
        file: The file of the index, which is stored with `.table` as its suffix; None stores
            nothing.
        key: What the entries belong to, such as the folder: entries of another key are not used.
    """

    def __init__(self, file: Path | None, key: str) -> None:
        former = None if file is None else FormerFile(file, [_FORMER_VERSION, key], _of_former)
        folder = None if file is None else file.with_suffix(".table")
        self._table = TableFolder(folder, INDEX, [INDEX_VERSION, key], former)
        self._known = self._table.read()

    def probe(self, found: FoundTable, progress: Progress, engine: Engine = LOCAL) -> Entries:
        """Return the results for all files; opens only those that are new or have changed.

        Results are written every few seconds, so an interrupted scan loses no more than that.
        """
        known = self._known
        rows = newest_rows(found.paths, known.column("path"))
        usable = ~found.has("fault")
        indices = np.flatnonzero(rows >= 0)
        same = np.zeros(len(found), dtype=np.bool_)
        same[indices] = _stamps_equal(known, rows[indices], found.stamps[indices])
        fresh = np.flatnonzero(usable & ~same)
        read, passing = self._probe(found, fresh, progress, engine)
        rows[fresh] = len(known) + np.arange(len(fresh))
        rows[~usable] = len(known) + len(fresh)  # the empty row
        entries = pa.concat_tables([known, *read, rows_of(INDEX, [NOTHING])])
        kept = usable.copy()
        kept[list(passing)] = False
        stored = len(known) + len(fresh) - len(passing)
        try:
            if self._table.is_untidy(stored, int(kept.sum())):
                return self._tidied(entries, rows, kept, passing)
        except StorageError as error:  # the results are right nevertheless, and stored
            progress.note(f"The index of the scan could not be merged into one file: {error}")
        return Entries(entries, rows, passing)

    def _probe(
        self, found: FoundTable, fresh: np.ndarray, progress: Progress, engine: Engine
    ) -> tuple[list[pa.Table], set[int]]:
        """Open files by index; return the results, and the indices with transient faults."""
        passing: set[int] = set()
        read: list[tuple[Any, ...]] = []
        appender = Appender(self._table)
        keeps = True
        executor = engine.executor(Probe(), usual=default_workers() + 1)
        items = found.items_at(fresh)
        tables: list[pa.Table] = []
        with progress.stage("Scanning images", len(fresh), "files") as advance:
            for outcomes in executor.run(in_chunks(items, _FILES_AT_ONCE)):
                for item, outcome in outcomes:
                    row = _row_of(item, outcome)
                    if isinstance(outcome, Failure) and outcome.is_transient:
                        passing.add(int(fresh[len(read) + sum(map(len, tables))]))
                    elif keeps:
                        keeps = _added(appender, row, progress)
                    read.append(row)
                if len(read) >= _ROWS_AT_ONCE:
                    tables.append(rows_of(INDEX, read))
                    read = []
                advance(len(outcomes))
        if keeps:
            _added(appender, None, progress)
        return [*tables, rows_of(INDEX, read)], passing

    def _tidied(
        self, entries: pa.Table, rows: np.ndarray, kept: np.ndarray, passing: Collection[int]
    ) -> Entries:
        """Replace all segments of the index by one, and return the entries of all files.

        The new segment has them in the order of the files, so that the next scan uses it as mapped.
        """
        if not kept.all():
            self._table.rewrite(take_rows(entries, rows[kept]))
            return Entries(entries, rows, passing)
        mapped = self._table.rewrite(take_rows(entries, rows))
        return Entries(mapped, np.arange(len(mapped)))


def split_usable(
    found: FoundTable, entries: Entries, subset: Subset
) -> tuple[RecordTable, list[SkippedFile]]:
    """Return records of the usable files, and the other files with their reasons."""
    faults = entries.faults()
    unread = np.flatnonzero(found.has("fault")).tolist()
    faults |= {index: found.item(index).fault for index in unread}
    skipped = {
        index: SkippedFile(Path(found.paths[index].as_py()), fault, index in entries.passing)
        for index, fault in faults.items()
    }
    width, height = entries.column("width"), entries.column("height")
    cuts = _cuts(found, width, height, skipped)
    if cuts:
        width, height = width.copy(), height.copy()
        for index, cut in cuts.items():
            width[index], height[index] = cut.box.size.wh
    numbers = {
        "width": width,
        "height": height,
        "size_bytes": entries.column("stamp0"),
        "mtime_ns": entries.column("stamp1"),
        "rotated": entries.column("rotated"),
        "use": _uses_of(found, subset),
        **({"cut": cut_column(cuts, len(found))} if cuts else {}),
    }
    uses = (Use(subset, ""), Use(subset, subset.class_tokens))
    records = RecordTable(entries.texts, entries.rows, numbers, uses, distinct=True)
    if skipped:
        good = np.ones(len(found), dtype=np.bool_)
        good[list(skipped)] = False
        records = records.select(good)
    return records.normalized(), [skipped[index] for index in sorted(skipped)]


def _cuts(
    found: FoundTable, width: np.ndarray, height: np.ndarray, skipped: dict[int, SkippedFile]
) -> dict[int, Cut]:
    """Read the manual crops of images, by index; an image whose crop is invalid is skipped."""
    cuts = {}
    for index in np.flatnonzero(found.has("crop")).tolist():
        if index in skipped:
            continue
        item = found.item(index)
        try:
            cut = read_cut(Path(item.crop), Size(int(width[index]), int(height[index])))
        except images.UnreadableImageError as error:
            skipped[index] = SkippedFile(Path(item.path), str(error), error.is_transient)
            continue
        if cut is not None:
            cuts[index] = cut
    return cuts


def _uses_of(found: FoundTable, subset: Subset) -> np.ndarray:
    """Return [files]: 1 for files with the subset's class tokens, those without a caption file."""
    if not subset.class_tokens:
        return np.broadcast_to(np.int32(0), len(found))
    return (~(found.has("caption") | found.has("tags"))).astype(np.int32)  # empty files count too


def _stamps_equal(known: pa.Table, rows: np.ndarray, stamps: np.ndarray) -> np.ndarray:
    """Return [rows]: whether rows of the index have these stamps."""
    equal = np.ones(len(rows), dtype=np.bool_)
    for number in range(STAMPS):
        equal &= values_of(known.column(f"stamp{number}"))[rows] == stamps[:, number]
    return equal


def _row_of(item: FoundImage, outcome: list[Any] | Failure) -> tuple[Any, ...]:
    """Return the index row of a file."""
    if isinstance(outcome, Failure):
        return (item.path, *item.stamps, 0, 0, 0, "", "", outcome.reason)
    return (item.path, *item.stamps, *outcome, "")


NOTHING = _row_of(FoundImage("", [0] * STAMPS), [0, 0, 0, "", ""])


def _added(appender: Appender, row: tuple[Any, ...] | None, progress: Progress) -> bool:
    """Add a row, or write all rows added if it is None; False, with a note, if that fails."""
    try:
        if row is None:
            appender.flush()
        else:
            appender.add(*row)
    except StorageError as error:  # the results are right nevertheless
        progress.note(f"The next scan will open all files again: {error}")
        return False
    return True


def _of_former(content: Any) -> pa.Table:
    """Return the rows of a former version's index: path -> [stamps, result]."""
    rows = []
    for path, (stamps, result) in content.items():
        if len(stamps) != STAMPS:
            continue
        failed = len(result) == 1
        rows.append((path, *stamps, *((0, 0, 0, "", "", *result) if failed else (*result, ""))))
    return rows_of(INDEX, rows)
