"""Plans records: the bucket, resize and crop of each image, and totals for reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from impasto.data.planning.bucket_assignment import Limits, Selection, assign_many, assign_native
from impasto.data.planning.buckets import make_bucket_sizes
from impasto.data.planning.planned_table import Codes, PlannedTable, join_planned, shapes_of
from impasto.data.record_table import RecordTable
from impasto.data.records import Box, ImageRecord, PlannedImage, Size, no_cycle_collection
from impasto.errors import DatasetError


@dataclass(frozen=True)
class Plan:
    """The bucket, resize and crop of each image, in the order of the records."""

    images: Sequence[PlannedImage]

    @cached_property
    def table(self) -> PlannedTable:
        """The planned images as columns."""
        return PlannedTable.of(self.images)

    @property
    def bucket_counts(self) -> dict[Size, int]:
        """Number of images per bucket, in ascending order of size, without empty buckets."""
        return self.table.bucket_counts()

    @property
    def mean_cropped_fraction(self) -> float:
        """The mean fraction of image area that cropping removes, in [0, 1)."""
        return float(self.table.cropped_fractions().mean())

    @property
    def enlarged(self) -> int:
        """How many images are smaller than their buckets need, and are enlarged."""
        return int(self.table.enlarged().sum())


@dataclass(frozen=True)
class BucketRules:
    """Which buckets exist, and how images are assigned to them.

    Attributes:
        enable_bucket: Whether there are buckets; otherwise all images go into one of the
            resolution.
        min_side: Shortest side of a bucket in pixels.
        max_side: Longest side of a bucket in pixels.
        step: Sides are multiples of this, in pixels.
        buckets: The table; None makes it from the limits above.
        selection: The rule that chooses an image's bucket: `native` or `kohya`.
        no_upscale: Never enlarge an image; buckets for small ones are made as needed.
        as_requested: Put each image into the bucket that its metadata names, if it names one. Not
            for images with a manual crop, since their metadata is for the whole image.
    """

    enable_bucket: bool = True
    min_side: int = 256
    max_side: int = 1024
    step: int = 64
    buckets: Sequence[Size] | None = None
    selection: Selection = "native"
    no_upscale: bool = False
    as_requested: bool = False


def plan_images(
    records: Sequence[ImageRecord],
    resolution: Size | tuple[int, int] | int,
    rules: BucketRules = BucketRules(),
) -> Plan:
    """Assign each record to a bucket; without buckets, all to one of exactly `resolution`.

    Args:
        records: The images.
        resolution: Training resolution, `N` or `(width, height)`; with buckets only its area
            counts.
        rules: Which buckets exist, and how images are assigned.

    Raises:
        DatasetError: There are no records.
        ConfigError: No bucket fits the bounds.
    """
    if not records:
        raise DatasetError("There are no images to plan: the dataset is empty.")
    if isinstance(resolution, int):
        resolution = Size(resolution, resolution)
    elif isinstance(resolution, tuple):
        resolution = Size(*resolution)
    buckets, no_upscale = rules.buckets, rules.no_upscale
    if not rules.enable_bucket:
        buckets, no_upscale = [resolution], False
    elif not buckets:
        buckets = make_bucket_sizes(resolution, rules.min_side, rules.max_side, rules.step)
    area, bounds = resolution.area, (rules.min_side, rules.max_side, rules.step)
    limits = Limits(tuple(buckets), area, *bounds)
    with no_cycle_collection():
        return Plan(
            _assigned(RecordTable.of(records), limits, replace(rules, no_upscale=no_upscale))
        )


def join_plans(plans: Sequence[Plan]) -> Plan:
    """Join the plans of several datasets into one."""
    return Plan(join_planned([plan.table for plan in plans]))


def _assigned(records: RecordTable, limits: Limits, rules: BucketRules) -> PlannedTable:
    """Compute the geometry of each record, once per image size."""
    sides = records.numbers["width"].astype(np.int64) << 32 | records.numbers["height"]
    different, inverse = np.unique(sides, return_inverse=True)
    sizes = np.stack([different >> 32, different & 0xFFFFFFFF], axis=1)
    assigned = assign_many(sizes, limits, rules.selection, no_upscale=rules.no_upscale)
    corners = (assigned[:, 2:] - assigned[:, :2]) // 2
    shapes = np.concatenate([assigned, corners], axis=1).astype(np.int32)
    codes: Codes = inverse.ravel().astype(np.int32)
    if rules.as_requested and "wanted" in records.numbers:
        asked = (records.column("wanted")[:, 0] > 0) & (records.column("cut")[:, 0] < 0)
        wanted = np.column_stack(
            [records.numbers["width"], records.numbers["height"], records.numbers["wanted"]]
        )[asked]
        pairs, own = np.unique(wanted, axis=0, return_inverse=True)
        asked_for = [_as_requested(Size(*p[:2]), Size(*p[2:]), limits) for p in pairs.tolist()]
        codes[asked] = own.ravel().astype(np.int32) + np.int32(len(shapes))
        shapes = np.concatenate([shapes, shapes_of(asked_for)])
    return PlannedTable(records, shapes, codes)


def _as_requested(size: Size, wanted: Size, limits: Limits) -> tuple[Size, Size, Box]:
    """Return the geometry of an image in the bucket that its metadata names."""
    return _centred(*assign_native([size], replace(limits, buckets=(wanted,)))[0])


def _centred(bucket: Size, resized: Size) -> tuple[Size, Size, Box]:
    """Return the bucket, the size after the resize, and the crop from the middle."""
    left, top = (resized.width - bucket.width) // 2, (resized.height - bucket.height) // 2
    return bucket, resized, Box(left, top, bucket)
