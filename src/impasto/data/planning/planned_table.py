"""Planned images as columns: the records, and the index of each one's geometry.

Images of one size are cropped alike, so a geometry is stored once, and an image needs 4 bytes for
it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from impasto.data.columns.lazy_sequence import LazySequence
from impasto.data.planning.groups import Group, Groups
from impasto.data.record_table import RecordTable, join_records
from impasto.data.records import Box, PlannedImage, Size

Codes = npt.NDArray[np.int32]
Geometry = tuple[Size, Size, Box]
"""Bucket, size after the resize, and the crop, which fills the bucket."""


class PlannedTable(LazySequence[PlannedImage]):
    """Planned images as columns; a `PlannedImage` object is made when it is accessed.

    Args:
        records: The images.
        shapes: [geometries, 6] int32: bucket, resized size, and the corner of the crop.
        codes: [images] int32: the geometry of each image.
    """

    def __init__(self, records: RecordTable, shapes: Codes, codes: Codes) -> None:
        super().__init__()
        self.records, self.shapes, self.codes = records, shapes, codes

    @classmethod
    def of(cls, images: Sequence[PlannedImage]) -> PlannedTable:
        """Make a table of planned images; a table is returned unchanged."""
        if isinstance(images, PlannedTable):
            return images
        geometries = [(image.bucket, image.resized, image.crop) for image in images]
        return cls.planned(RecordTable.of([image.record for image in images]), geometries)

    @classmethod
    def planned(cls, records: RecordTable, geometries: Sequence[Geometry]) -> PlannedTable:
        """Make a table of records and the geometry of each."""
        numbers: dict[Geometry, int] = {}
        codes = [numbers.setdefault(geometry, len(numbers)) for geometry in geometries]
        return cls(records, shapes_of(list(numbers)), np.array(codes, dtype=np.int32))

    def __len__(self) -> int:
        return len(self.codes)

    def __iter__(self) -> Iterator[PlannedImage]:
        known: dict[int, Geometry] = {}
        for record, code in zip(self.records, _ints(self.codes), strict=True):
            if code not in known:
                known[code] = self._geometry(code)
            yield PlannedImage(record, *known[code])

    def select(self, rows: np.ndarray) -> PlannedTable:
        """Return the images at these row numbers, or at the rows where a mask is true."""
        if rows.dtype == np.bool_:
            rows = np.flatnonzero(rows)
        return PlannedTable(self.records.select(rows), self.shapes, self.codes[rows])

    @property
    def areas(self) -> np.ndarray:
        """[geometries, 2] int64: pixels of the bucket, and of the image after the resize."""
        sides = self.shapes[:, :4].astype(np.int64)
        return np.stack([sides[:, 0] * sides[:, 1], sides[:, 2] * sides[:, 3]], axis=1)

    def cropped_fractions(self) -> np.ndarray:
        """Return [images]: the fraction of each image that the crop removes, in [0, 1)."""
        bucket, resized = self.areas.T
        fractions: np.ndarray = (1 - bucket / resized)[self.codes]
        return fractions

    def enlarged(self) -> np.ndarray:
        """Return [images]: whether each image is smaller than its bucket needs."""
        numbers = self.records.numbers
        own = numbers["width"].astype(np.int64) * numbers["height"]
        larger: np.ndarray = self.areas[self.codes, 1] > own
        return larger

    def bucket_counts(self) -> dict[Size, int]:
        """Return the number of images per bucket, in order of size, without empty buckets."""
        buckets, of_shape = self._buckets()
        counts = np.bincount(of_shape, np.bincount(self.codes, minlength=len(self.shapes)))
        return {
            bucket: int(count)
            for bucket, count in zip(buckets, counts.tolist(), strict=True)
            if count
        }

    def _buckets(self) -> tuple[list[Size], np.ndarray]:
        """Return the different buckets, ascending, and [geometries]: the index of each bucket."""
        packed = self.shapes[:, 0].astype(np.int64) << 32 | self.shapes[:, 1]
        different, of_shape = np.unique(packed, return_inverse=True)
        return [
            Size(side >> 32, side & 0xFFFFFFFF) for side in different.tolist()
        ], of_shape.ravel()

    def groups(self) -> Groups:
        """Return the group of each image: its dataset and bucket."""
        buckets, of_shape = self._buckets()
        datasets, of_image = np.unique(self.records.subset_numbers, return_inverse=True)
        table = [Group(dataset, bucket) for dataset in datasets.tolist() for bucket in buckets]
        codes = of_image.astype(np.int32) * np.int32(len(buckets))
        codes += of_shape.astype(np.int32)[self.codes]
        return Groups(table, codes)

    def _geometry(self, code: int) -> Geometry:
        width, height, wide, high, left, top = self.shapes[code].tolist()
        bucket = Size(width, height)
        return bucket, Size(wide, high), Box(left, top, bucket)

    def _make(self, row: int) -> PlannedImage:
        return PlannedImage(self.records[row], *self._geometry(int(self.codes[row])))


def join_planned(tables: Sequence[PlannedTable]) -> PlannedTable:
    """Join the images of several tables into one table."""
    tables = [table for table in tables if len(table)]
    if len(tables) == 1:
        return tables[0]
    before = np.cumsum([0, *(len(table.shapes) for table in tables)]).astype(np.int32)
    codes = [table.codes + at for table, at in zip(tables, before[:-1], strict=True)]
    return PlannedTable(
        join_records([table.records for table in tables]),
        np.concatenate([np.empty((0, 6), np.int32), *(table.shapes for table in tables)]),
        np.concatenate([np.empty(0, np.int32), *codes]),
    )


def shapes_of(geometries: Sequence[Geometry]) -> Codes:
    """Return geometries as numbers: [geometries, 6]."""
    rows = [(*b.wh, *resized.wh, crop.left, crop.top) for b, resized, crop in geometries]
    return np.array(rows, dtype=np.int32).reshape(-1, 6)


def _ints(values: np.ndarray) -> Iterator[int]:
    for start in range(0, len(values), 4096):
        yield from values[start : start + 4096].tolist()
