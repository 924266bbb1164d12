"""From records to a plan: geometry for each image, and numbers for a person to look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from impasto.data.bucket_assignment import ASSIGNMENTS, Limits, Selection, assign_native
from impasto.data.buckets import make_bucket_sizes
from impasto.data.records import Box, ImageRecord, PlannedImage, Size, no_cycle_collection
from impasto.errors import DatasetError


@dataclass(frozen=True)
class Plan:
    """Where each image goes, in the order of the records."""

    images: tuple[PlannedImage, ...]

    @property
    def bucket_counts(self) -> dict[Size, int]:
        """Images per bucket, in ascending order of size, empty buckets left out."""
        return dict(sorted(Counter(image.bucket for image in self.images).items()))

    @property
    def mean_cropped_fraction(self) -> float:
        """The mean share of image area that cropping removes, in [0, 1)."""
        return sum(image.cropped_fraction for image in self.images) / len(self.images)

    @property
    def enlarged(self) -> int:
        """How many images are smaller than their bucket asks for and get enlarged."""
        return sum(image.resized.area > image.record.size.area for image in self.images)


@dataclass(frozen=True)
class BucketRules:
    """Which buckets there are, and how an image comes into one.

    Attributes:
        enable_bucket: Whether there are buckets; else all images go into one of the resolution.
        min_side: Shortest side of a bucket in pixels.
        max_side: Longest side of a bucket in pixels.
        step: Sides are multiples of this, in pixels.
        buckets: The table, where it is not to be made from the above.
        selection: Whose choice of an image's bucket: `native` or `kohya`.
        no_upscale: Never enlarge an image; buckets for small ones are made as needed.
        as_requested: Put each image into the bucket that its metadata names, where it names one;
            not one with a crop of its own, for which no metadata was made.
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
    resolution: Size,
    rules: BucketRules = BucketRules(),
) -> Plan:
    """Assign each record to a bucket; without buckets, all to one of exactly `resolution`.

    Args:
        records: The images.
        resolution: Training resolution; with buckets only its area counts.
        rules: Which buckets there are.

    Raises:
        DatasetError: There are no records.
        ConfigError: No bucket fits the bounds.
    """
    if not records:
        raise DatasetError("There is no image to plan: the dataset is empty.")
    buckets, no_upscale = rules.buckets, rules.no_upscale
    if not rules.enable_bucket:
        buckets, no_upscale = [resolution], False
    elif not buckets:
        buckets = make_bucket_sizes(resolution, rules.min_side, rules.max_side, rules.step)
    area, bounds = resolution.area, (rules.min_side, rules.max_side, rules.step)
    limits = Limits(tuple(buckets), area, *bounds)
    with no_cycle_collection():
        sizes = list({record.size: None for record in records})
        assigned = dict(
            zip(sizes, ASSIGNMENTS[rules.selection, no_upscale](sizes, limits), strict=True)
        )
        geometry = {size: _centred(*assigned[size]) for size in sizes}
        return Plan(
            tuple(
                PlannedImage(record, *_as_requested(record, limits))
                if rules.as_requested and record.wanted and record.cut is None
                else PlannedImage(record, *geometry[record.size])
                for record in records
            )
        )


def join_plans(plans: Sequence[Plan]) -> Plan:
    """The plans of several datasets as one."""
    return Plan(tuple(image for plan in plans for image in plan.images))


def _as_requested(record: ImageRecord, limits: Limits) -> tuple[Size, Size, Box]:
    """The geometry of a record in the bucket that its metadata names."""
    assert record.wanted is not None  # noqa: S101 - the caller has looked
    only = replace(limits, buckets=(record.wanted,))
    return _centred(*assign_native([record.size], only)[0])


def _centred(bucket: Size, resized: Size) -> tuple[Size, Size, Box]:
    """Bucket, size after the resize, and the crop from the middle."""
    left, top = (resized.width - bucket.width) // 2, (resized.height - bucket.height) // 2
    return bucket, resized, Box(left, top, bucket)
