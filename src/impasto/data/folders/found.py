"""The image files found by a listing, as columns: about a hundred bytes per file, no objects."""

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
"""Number of stamps: size and modification time of an image, of its caption and of its tags."""
_AT_ONCE = 4096


@dataclass(frozen=True)
class FoundTable:
    """Image files, in the order of their records.

    Attributes:
        texts: `path`, `caption` and `tags` (the paths of these files), `crop` and `fault`.
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
        """Return one image file as an object, by its index."""
        return next(self.items_at(np.array([index])))

    def items_at(self, indices: npt.NDArray[np.int64]) -> Iterator[FoundImage]:
        """Yield some files as objects, by their indices."""
        for start in range(0, len(indices), _AT_ONCE):
            portion = indices[start : start + _AT_ONCE]
            columns = (texts_at(column, portion) for column in self.texts.itercolumns())
            for path, caption, tags, crop, fault, stamps in zip(
                *columns, self.stamps[portion].tolist(), strict=True
            ):
                yield FoundImage(path, [] if fault else stamps, (caption, tags), fault, crop)

    def items(self) -> Iterator[FoundImage]:
        """Yield all files as objects."""
        return self.items_at(np.arange(len(self)))

    def has(self, name: str) -> npt.NDArray[np.bool_]:
        """Return [files]: whether a text column is non-empty for each file."""
        return is_filled(self.texts.column(name))

    def sorted_by_path(self, separator: str) -> FoundTable:
        """Return a table in the order of `canonical.sort_key`, the same on all systems."""
        if len(self) < FEW:
            keys = [path.replace(separator, "/") for path in texts_of(self.paths)]
            indices = np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)
            return FoundTable(few_of(self.texts, indices).combine_chunks(), self.stamps[indices])
        import pyarrow.compute as pc  # 0.05 s, which would slow down small folders

        column = self.paths
        if separator != "/":
            column = pc.replace_substring(column, pattern=separator, replacement="/")
        order = pc.sort_indices(column)
        return FoundTable(self.texts.take(order).combine_chunks(), self.stamps[values_of(order)])


_TEXTS = pa.schema(
    [(name, pa.large_string()) for name in ("path", "caption", "tags", "crop", "fault")]
)


class FoundBuilder:
    """Collects the image files of a listing, folder by folder, into columns."""

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
        """Return all files, in the order in which they were added."""
        texts = pa.concat_tables(self._texts).combine_chunks()
        if texts.column(0).num_chunks == 0:
            texts = empty_table(_TEXTS)
        return FoundTable(texts, np.concatenate(self._stamps))


def join_found(tables: Sequence[FoundTable]) -> FoundTable:
    """Return several listings as one, in order."""
    texts = pa.concat_tables([table.texts for table in tables]).combine_chunks()
    if texts.column(0).num_chunks == 0:
        return tables[0]
    return FoundTable(texts, np.concatenate([table.stamps for table in tables]))


def found_of(items: Sequence[FoundImage]) -> FoundTable:
    """Return a list of files as columns."""
    builder = FoundBuilder()
    builder.add(items)
    return builder.table()
