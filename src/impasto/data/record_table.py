"""The image records of a dataset as columns; `ImageRecord` objects are created on request.

A record takes 1.4 kB as an object and about 40 bytes here; its path and caption stay in the
memory-mapped file they were read from (`tables.py`), which the processes of a machine share.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from impasto.data.captions import join_caption_and_tags
from impasto.data.columns.arrow_columns import FEW, text_column, texts_at, texts_of, values_of
from impasto.data.columns.lazy_sequence import LazySequence
from impasto.data.record_columns import (
    NUMBERS,
    TEXTS,
    Use,
    absent_column,
    lean,
    numbers_of,
)
from impasto.data.records import (
    STEADY,
    Box,
    Cut,
    FileStamp,
    ImageRecord,
    Size,
    caption_or_class,
)
from impasto.data.subsets import Subset

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_AT_ONCE = 4096


class RecordTable(LazySequence[ImageRecord]):
    """Image records as columns.

    Args:
        texts: Paths, captions and tags; possibly of more images than this table has.
        rows: [images]: the row of `texts` that each image has; None if image i has row i.
        numbers: The columns of `NUMBERS`, [images] or [images, n] each. `cut` is the upright size
            of the whole image and the corner of the crop, or `NO_CUT`; `wanted` a size, or zeros.
        uses: The values that the column `use` is an index into.
        distinct: Whether all paths are known to differ.
    """

    def __init__(
        self,
        texts: pa.Table,
        rows: np.ndarray | None,
        numbers: Mapping[str, np.ndarray],
        uses: Sequence[Use],
        *,
        distinct: bool = False,
    ) -> None:
        super().__init__()
        self.texts, self.rows, self.numbers = texts, rows, dict(numbers)
        self.uses, self.is_distinct = tuple(uses), distinct

    @classmethod
    def of(cls, records: Sequence[ImageRecord]) -> RecordTable:
        """Return a table of these records; a `RecordTable` is returned unchanged."""
        if isinstance(records, RecordTable):
            return records
        uses: dict[tuple[int, str], int] = {}
        table: list[Use] = []
        lines = []
        for record in records:
            key = (id(record.subset), record.class_tokens)
            if key not in uses:
                uses[key] = len(table)
                table.append(Use(record.subset, record.class_tokens))
            lines.append(numbers_of(record, uses[key]))
        columns = zip(*lines, strict=True) if lines else [()] * len(NUMBERS)
        numbers = {}
        for (name, (kind, width)), column in zip(NUMBERS.items(), columns, strict=True):
            values = np.array(column, dtype=kind)
            numbers[name] = values if width == 1 else values.reshape(-1, width)
        texts = [[str(r.path) for r in records], [r.caption for r in records]]
        texts.append([r.tags for r in records])
        arrays = [text_column(column) for column in texts]
        return cls(pa.Table.from_arrays(arrays, schema=TEXTS), None, lean(numbers), table)

    def __len__(self) -> int:
        return len(self.numbers["width"])

    def __iter__(self) -> Iterator[ImageRecord]:
        for start in range(0, len(self), _AT_ONCE):
            yield from self._make_all(start, min(len(self), start + _AT_ONCE))

    def select(self, indices: Ints | Bools) -> RecordTable:
        """Return a table of the records at these indices, or where a boolean mask is true."""
        chosen: np.ndarray = np.flatnonzero(indices) if indices.dtype == np.bool_ else indices
        rows = chosen if self.rows is None else self.rows[chosen]
        numbers = {name: column[chosen] for name, column in self.numbers.items()}
        rows = rows.astype(np.int32) if len(self.texts) < 2**31 else rows
        return RecordTable(self.texts, rows, numbers, self.uses, distinct=self.is_distinct)

    def replaced(self, **changes: np.ndarray) -> RecordTable:
        """Return a table in which some columns of `NUMBERS` are replaced by other arrays."""
        numbers = lean({**self.numbers, **changes})
        return RecordTable(self.texts, self.rows, numbers, self.uses, distinct=self.is_distinct)

    def with_subsets(self, change: Callable[[Subset], Subset]) -> RecordTable:
        """Return a table with changed subsets; `change` is called once per use, not per image."""
        known = {id(use.subset): change(use.subset) for use in self.uses}
        uses = [Use(known[id(use.subset)], use.class_tokens) for use in self.uses]
        return RecordTable(self.texts, self.rows, self.numbers, uses, distinct=self.is_distinct)

    def per_use(self, value: Callable[[Use], object]) -> np.ndarray:
        """Return [images]: the value of a function of each image's use; called once per use."""
        values: np.ndarray = np.array([value(use) for use in self.uses] or [0])
        found: np.ndarray = values[self.numbers["use"]]
        return found

    def column(self, name: str) -> np.ndarray:
        """Return a column of `NUMBERS`, filled with its "none" value if it is omitted."""
        if name in self.numbers:
            return self.numbers[name]
        return absent_column(name, len(self))

    @property
    def subsets(self) -> list[Subset]:
        """The subsets that have images here; one with several class captions is repeated."""
        used = np.bincount(self.numbers["use"], minlength=len(self.uses)).tolist()
        return [use.subset for use, count in zip(self.uses, used, strict=True) if count]

    @property
    def repeats(self) -> np.ndarray:
        """[images]: how often each image is shown in an epoch."""
        own = self.per_use(lambda use: use.subset.repeats).astype(np.int32)
        return own + self.numbers["extra"] if "extra" in self.numbers else own

    @property
    def subset_numbers(self) -> np.ndarray:
        """[images]: the number of the dataset that each image belongs to."""
        return self.per_use(lambda use: use.subset.dataset).astype(np.int32)

    def text(self, name: str, start: int = 0, stop: int | None = None) -> list[str]:
        """Return a text column (`path`, `caption` or `tags`) from index `start` up to `stop`."""
        stop = len(self) if stop is None else stop
        column = self.texts.column(name)
        if self.rows is None:
            return texts_of(column.slice(start, stop - start))
        rows = self.rows[start:stop]
        if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():
            return texts_of(column.slice(int(rows[0]), len(rows)))
        return texts_at(column, rows)

    def text_chunks(self, name: str) -> Iterator[list[str]]:
        """Yield a text column in lists of up to 4096 values."""
        for start in range(0, len(self), _AT_ONCE):
            yield self.text(name, start, min(len(self), start + _AT_ONCE))

    def names_and_captions(self) -> Iterator[tuple[str, str]]:
        """Yield the name and caption of each record, in most cases without creating the record."""
        heads = [f"{use.subset.root}{os.sep}" for use in self.uses]
        separators = [use.subset.captions.separator for use in self.uses]
        for start in range(0, len(self), _AT_ONCE):
            stop = min(len(self), start + _AT_ONCE)
            texts = (self.text(name, start, stop) for name in TEXTS.names)
            uses = self.numbers["use"][start:stop].tolist()
            for index, (path, caption, tags, use) in enumerate(
                zip(*texts, uses, strict=True), start
            ):
                name = _name_below(heads[use], path)
                if name is None:
                    yield self[index].name, self[index].caption_text
                else:
                    own = join_caption_and_tags(caption, tags, separators[use])
                    yield name, caption_or_class(own, self.uses[use].class_tokens)

    def fixed_captions(self) -> list[str]:
        """Return each record's caption without random changes, as for validation."""
        rules = [use.subset.captions.steady() for use in self.uses]
        each = zip(self.names_and_captions(), self.numbers["use"], strict=True)
        return [rules[use].write(text, STEADY, 0, name) for (name, text), use in each]

    def text_digest(self, name: str) -> bytes:
        """Return a hash of a text column: of the values' lengths and bytes, in order."""
        lengths, content = hashlib.sha256(), hashlib.sha256()
        column = self.texts.column(name)
        chunks = column.chunks if self.rows is None else map(text_column, self.text_chunks(name))
        for chunk in chunks:
            _, ends, values = chunk.buffers()
            if len(chunk):
                own = np.frombuffer(ends, np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
                lengths.update(np.diff(own).data)
                content.update(values[int(own[0]) : int(own[-1])] if own[-1] > own[0] else b"")
        return lengths.digest() + content.digest()

    def matches(self, name: str, test: Callable[[str], object]) -> Bools:
        """Return [images]: whether each image's value in a text column passes a test."""
        found = (bool(test(text)) for chunk in self.text_chunks(name) for text in chunk)
        return np.fromiter(found, np.bool_, len(self))

    def path_firsts(self) -> Ints:
        """Return [images]: the index of the first image with the same path."""
        if self.is_distinct:
            return np.arange(len(self))
        if len(self) < FEW:
            known: dict[str, int] = {}
            paths = itertools.chain.from_iterable(self.text_chunks("path"))
            found = (known.setdefault(path, index) for index, path in enumerate(paths))
            return np.fromiter(found, np.int64, len(self))
        chunks = [text_column(chunk) for chunk in self.text_chunks("path")]
        column = pa.chunked_array(chunks, pa.large_string()).combine_chunks()
        codes = values_of(column.dictionary_encode().indices)
        firsts: Ints = np.unique(codes, return_index=True)[1][codes]
        return firsts

    def first_of_paths(self) -> Bools:
        """Return [images]: whether each image is the first with its path."""
        is_first: Bools = self.path_firsts() == np.arange(len(self))
        return is_first

    def normalized(self) -> RecordTable:
        """Return a table with paths as `Path` writes them: `./cat.png` becomes `cat.png`."""
        here = f".{os.sep}"
        if not any(path.startswith(here) for path in self.text("path", 0, min(1, len(self)))):
            return self
        chunks = [[str(Path(p)) for p in chunk] for chunk in self.text_chunks("path")]
        texts = ([t for chunk in self.text_chunks(n) for t in chunk] for n in ("caption", "tags"))
        columns = [[path for chunk in chunks for path in chunk], *texts]
        arrays = [text_column(column) for column in columns]
        texts = pa.Table.from_arrays(arrays, schema=TEXTS)
        return RecordTable(texts, None, self.numbers, self.uses, distinct=self.is_distinct)

    def without_known(self, paths: set[Path]) -> set[Path]:
        """Return those of `paths` that belong to no image of this table."""
        names = {str(path): path for path in paths}
        if names:
            for chunk in self.text_chunks("path"):
                for path in names.keys() & chunk:
                    del names[path]
        return set(names.values())

    def with_captions(
        self, captions: list[str], tags: list[str], wanted: Sequence[Size | None]
    ) -> RecordTable:
        """Return a table of the same images with other captions, tags and wanted buckets."""
        paths = [path for chunk in self.text_chunks("path") for path in chunk]
        arrays = [text_column(column) for column in (paths, captions, tags)]
        sizes = np.array([size.wh if size else (0, 0) for size in wanted], dtype=np.int32)
        numbers = lean({**self.numbers, "wanted": sizes.reshape(-1, 2)})
        texts = pa.Table.from_arrays(arrays, schema=TEXTS)
        return RecordTable(texts, None, numbers, self.uses, distinct=self.is_distinct)

    def without(self, paths: Sequence[Path]) -> RecordTable:
        """Return a table without the images that have these paths."""
        if not paths:
            return self
        gone = {str(path) for path in paths}
        return self.select(~self.matches("path", gone.__contains__))

    def _make(self, index: int) -> ImageRecord:
        row = index if self.rows is None else int(self.rows[index])
        texts = (self.texts.column(name)[row].as_py() for name in TEXTS.names)
        return self._record((*texts, *(column[index].tolist() for column in self._columns)))

    @cached_property
    def _columns(self) -> list[np.ndarray]:
        return [self.column(name) for name in NUMBERS]

    def _make_all(self, start: int, stop: int) -> list[ImageRecord]:
        columns = (column[start:stop].tolist() for column in self._columns)
        texts = (self.text(name, start, stop) for name in TEXTS.names)
        return [self._record(row) for row in zip(*texts, *columns, strict=True)]

    def _record(self, row: tuple[Any, ...]) -> ImageRecord:
        path, caption, tags, width, height, size_bytes, mtime_ns, rotated, use, *rest = row
        cut, wanted, extra = rest
        subset, class_tokens = self.uses[use]
        size = Size(width, height)
        return ImageRecord(
            Path(path),
            size,
            FileStamp(size_bytes, mtime_ns),
            caption,
            tags,
            bool(rotated),
            Size(*wanted) if wanted[0] else None,
            subset,
            None if cut[0] < 0 else Cut(Size(cut[0], cut[1]), Box(cut[2], cut[3], size)),
            class_tokens,
            extra,
        )


def join_records(tables: Sequence[RecordTable]) -> RecordTable:
    """Return the records of several tables as one table, in their order."""
    tables = [table for table in tables if len(table)]
    if len(tables) == 1:
        return tables[0]
    if not tables:
        return RecordTable.of(())
    uses: dict[tuple[int, str], int] = {}
    found: list[Use] = []
    numbers: dict[str, list[np.ndarray]] = {}
    rows, before = [], 0
    for table in tables:
        codes = []
        for use in table.uses:
            key = (id(use.subset), use.class_tokens)
            if key not in uses:
                uses[key] = len(found)
                found.append(use)
            codes.append(uses[key])
        own = np.arange(len(table)) if table.rows is None else table.rows.astype(np.int64)
        rows.append(own + before)
        before += len(table.texts)
        for name in NUMBERS:
            column = table.column(name)
            is_use = name == "use"
            numbers.setdefault(name, []).append(
                np.array(codes, dtype=np.int32)[column] if is_use else column
            )
    texts = pa.concat_tables([table.texts for table in tables])
    joined = {name: np.concatenate(columns) for name, columns in numbers.items()}
    return RecordTable(texts, np.concatenate(rows), lean(joined), found)


def _name_below(head: str, path: str) -> str | None:
    """Return an image's name relative to a folder; None if only `ImageRecord.name` can derive it.

    Args:
        head: The folder's path, with the separator behind it.
        path: The image's path.
    """
    name = path[len(head) :]
    odd = "@" in path or "//" in path or "/./" in path or (os.sep != "/" and "/" in path)
    if odd or not name or not path.startswith(head):
        return None
    name = name.replace(os.sep, "/")
    return name if name.isascii() else unicodedata.normalize("NFC", name)
