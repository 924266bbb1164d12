"""The image files that a listing found, as columns: some hundred bytes of each, and no object."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from impasto.data.columns.arrow_columns import (
    FEW,
    empty_table,
    few_of,
    is_filled,
    text_column,
    texts_at,
    texts_of,
    values_of,
)
from impasto.data.folders.found_image import FoundImage

STAMPS = 6
"""Size and time of change of an image, of its caption and of its tags."""
_AT_ONCE = 4096


@dataclass(frozen=True)
class FoundTable:
    """Image files, in the order in which their records come.

    Attributes:
        texts: `path`, `caption` and `tags` (the files with the words), `crop` and `fault`.
        stamps: [files, 6] int64; zeros for a file with a fault.
    """

    texts: pa.Table
    stamps: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.stamps)

    @property
    def paths(self) -> pa.Array:
        """[files]: the path of each image file, as a column of texts."""
        column: pa.Array = self.texts.column("path").chunk(0)
        return column

    def item(self, index: int) -> FoundImage:
        """One image file as an object, by its index in the order of records."""
        return next(self.items_at(np.array([index])))

    def items_at(self, indices: npt.NDArray[np.int64]) -> Iterator[FoundImage]:
        """Some files as objects, by their indices in the order of records."""
        for start in range(0, len(indices), _AT_ONCE):
            portion = indices[start : start + _AT_ONCE]
            columns = (texts_at(column, portion) for column in self.texts.itercolumns())
            for path, caption, tags, crop, fault, stamps in zip(
                *columns, self.stamps[portion].tolist(), strict=True
            ):
                yield FoundImage(path, [] if fault else stamps, (caption, tags), fault, crop)

    def items(self) -> Iterator[FoundImage]:
        """The files as objects, one after the other."""
        return self.items_at(np.arange(len(self)))

    def has(self, name: str) -> npt.NDArray[np.bool_]:
        """[files]: whether a text of each is not empty."""
        return is_filled(self.texts.column(name))

    def sorted_by_path(self, separator: str) -> FoundTable:
        """A table in the order of `canonical.sort_key`, which is the same on all systems."""
        if len(self) < FEW:
            keys = [path.replace(separator, "/") for path in texts_of(self.paths)]
            indices = np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)
            return FoundTable(few_of(self.texts, indices).combine_chunks(), self.stamps[indices])
        import pyarrow.compute as pc  # 0.05 s, which a small folder has no use for

        column = self.paths
        if separator != "/":
            column = pc.replace_substring(column, pattern=separator, replacement="/")
        order = pc.sort_indices(column)
        return FoundTable(self.texts.take(order).combine_chunks(), self.stamps[values_of(order)])


_TEXTS = pa.schema(
    [(name, pa.large_string()) for name in ("path", "caption", "tags", "crop", "fault")]
)


class FoundBuilder:
    """Gathers the image files of a listing, folder by folder, into columns."""

    def __init__(self) -> None:
        self._texts: list[pa.Table] = [empty_table(_TEXTS)]
        self._stamps: list[npt.NDArray[np.int64]] = [np.empty((0, STAMPS), np.int64)]

    def add(self, items: Sequence[FoundImage]) -> None:
        """Add the files of a folder."""
        nothing = [0] * STAMPS
        columns = [
            [item.path for item in items],
            [item.caption_files[0] for item in items],
            [item.caption_files[1] for item in items],
            [item.crop for item in items],
            [item.fault for item in items],
        ]
        arrays = [text_column(column) for column in columns]
        self._texts.append(pa.Table.from_arrays(arrays, schema=_TEXTS))
        stamps = [item.stamps or nothing for item in items]
        self._stamps.append(np.array(stamps, dtype=np.int64).reshape(-1, STAMPS))

    def table(self) -> FoundTable:
        """All of them, in the order in which they were added."""
        texts = pa.concat_tables(self._texts).combine_chunks()
        if texts.column(0).num_chunks == 0:
            texts = empty_table(_TEXTS)
        return FoundTable(texts, np.concatenate(self._stamps))


def join_found(tables: Sequence[FoundTable]) -> FoundTable:
    """Several listings as one, one after the other."""
    texts = pa.concat_tables([table.texts for table in tables]).combine_chunks()
    if texts.column(0).num_chunks == 0:
        return tables[0]
    return FoundTable(texts, np.concatenate([table.stamps for table in tables]))


def found_of(items: Sequence[FoundImage]) -> FoundTable:
    """A list of files as columns."""
    builder = FoundBuilder()
    builder.add(items)
    return builder.table()
