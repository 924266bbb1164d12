"""From records to a plan: geometry for each picture, and numbers for a person to look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from impasto.data.buckets import make_bucket_sizes, place
from impasto.data.records import ImageRecord, PlannedImage, Size
from impasto.errors import DatasetError


@dataclass(frozen=True)
class Plan:
    """Where each picture goes, in the order of the records."""

    images: tuple[PlannedImage, ...]

    @property
    def bucket_counts(self) -> dict[Size, int]:
        """Pictures per bucket, in ascending order of size, empty buckets left out."""
        return dict(sorted(Counter(image.bucket for image in self.images).items()))

    @property
    def mean_lost_area(self) -> float:
        """The mean share of picture area that cropping removes, in [0, 1)."""
        return sum(image.lost_area for image in self.images) / len(self.images)

    @property
    def enlarged(self) -> int:
        """How many pictures are smaller than their bucket asks for and get enlarged."""
        return sum(image.resized.area > image.record.size.area for image in self.images)


def plan_images(
    records: Sequence[ImageRecord],
    resolution: Size,
    *,
    enable_bucket: bool = True,
    min_side: int = 256,
    max_side: int = 1024,
    step: int = 64,
) -> Plan:
    """Place each record into a bucket; without buckets, all into one of exactly `resolution`.

    Raises:
        DatasetError: There are no records.
        ConfigError: No bucket fits the bounds.
    """
    if not records:
        raise DatasetError("There is no picture to plan: the data set is empty.")
    if enable_bucket:
        buckets = make_bucket_sizes(resolution, min_side, max_side, step)
    else:
        buckets = [resolution]
    placed: dict[Size, PlannedImage] = {}
    return Plan(tuple(_placed_like(record, buckets, placed) for record in records))


def _placed_like(
    record: ImageRecord, buckets: Sequence[Size], placed: dict[Size, PlannedImage]
) -> PlannedImage:
    """Plan a record, reusing the geometry of an earlier one of the same size."""
    known = placed.get(record.size)
    if known is None:
        known = placed[record.size] = place(record, buckets)
    return PlannedImage(record, known.bucket, known.resized, known.crop)
