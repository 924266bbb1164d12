"""Assigns images to buckets, with their resize and crop: geometry, no pixels.

`native` crops away the least; `kohya` equals sd-scripts' choice (`library/train_util.py`,
BucketManager.select_bucket), for runs that must match earlier ones. Each has a variant that never
enlarges an image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from impasto.data.records import Size

_AT_ONCE = 1 << 16
_ROUNDING = 1e-12

Selection = Literal["native", "kohya"]


@dataclass(frozen=True)
class Limits:
    """The buckets that an image may be assigned to.

    Attributes:
        buckets: The table of buckets.
        area: Most pixels of a bucket that is made for a small image.
        min_side: Shortest side of such a bucket, if the image has that many pixels.
        max_side: Longest side of such a bucket.
        step: Its sides are multiples of this.
    """

    buckets: Sequence[Size]
    area: int
    min_side: int
    max_side: int
    step: int


Assigned = tuple[Size, Size]
"""A bucket, and the size an image is resized to, which covers it."""

AssignBuckets = Callable[[Sequence[Size], Limits], list[Assigned]]

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def _one_by_one(assign: Callable[[Size, Limits], Assigned]) -> AssignBuckets:
    """Make an assignment of many sizes from one that assigns a single size."""

    def assign_all(sizes: Sequence[Size], limits: Limits) -> list[Assigned]:
        return [assign(size, limits) for size in sizes]

    assign_all.__doc__ = assign.__doc__
    return assign_all


def kept_fraction(size: Size, bucket: Size) -> float:
    """Return the fraction kept of an image that covers a bucket: min(a/b, b/a) of their aspects."""
    return min(bucket.aspect / size.aspect, size.aspect / bucket.aspect)


def cover_size(size: Size, bucket: Size) -> Size:
    """Scale `size` to cover `bucket`, keeping its aspect; rounded half up as in sd-scripts."""
    if size.aspect > bucket.aspect:
        scale = bucket.height / size.height
    else:
        scale = bucket.width / size.width
    return Size(
        max(bucket.width, int(size.width * scale + 0.5)),
        max(bucket.height, int(size.height * scale + 0.5)),
    )


def assign_native(sizes: Sequence[Size], limits: Limits) -> list[Assigned]:
    """Choose the bucket that keeps the most area; of equal ones, the larger bucket.

    The distance is the ratio of aspects, not sd-scripts' difference, which favours wide images.
    """
    return _by_distance(
        sizes, _native_order(limits.buckets), _native_distance, at_least_bucket=True
    )


def _native_order(buckets: Sequence[Size]) -> list[Size]:
    """Return the table with the larger bucket first, so that it wins if two keep the same area."""
    return sorted(buckets, key=lambda bucket: (-bucket.area, bucket))


def _native_distance(buckets: Floats, aspects: Floats) -> Floats:
    return -np.minimum(buckets / aspects, aspects / buckets)


def _kohya_distance(buckets: Floats, aspects: Floats) -> Floats:
    return np.abs(buckets - aspects)


@_one_by_one
def assign_native_no_upscale(size: Size, limits: Limits) -> Assigned:
    """Choose the largest bucket that needs no enlarging and crops no more than sd-scripts would.

    Buckets need not be in the table: sides may be any multiples of the step within the limits.
    sd-scripts ignores the limits of sides here; this does too if keeping them would crop more, as
    with an image of 197x6000. If sd-scripts rounds to more pixels than the area, as it does with
    steps of 8, this crops no more than that bucket with one side a step shorter would. Only a side
    shorter than one step is enlarged, to one step.
    """
    theirs = _within_area(size, _kohya_no_upscale(size, limits), limits)
    most = _lost(*theirs) + _ROUNDING
    for bounds in (limits, replace(limits, min_side=limits.step, max_side=max(size.wh))):
        bucket = _largest_smaller(size, bounds, kept_fraction(size, theirs[0]))
        for resized in (cover_size(size, bucket), _cover_exactly(size, bucket)):
            if _lost(bucket, resized) <= most:
                return bucket, resized
    return theirs


def _within_area(size: Size, theirs: Assigned, limits: Limits) -> Assigned:
    """Return a bucket and its resize; if rounding made it too large, with one side shortened."""
    bucket, step = theirs[0], limits.step
    is_rounded = size.area > limits.area and 0 < bucket.area - limits.area <= sum(bucket.wh)
    shorter = (Size(bucket.width - step, bucket.height), Size(bucket.width, bucket.height - step))
    fitting = [one for one in shorter if min(one.wh) >= step and one.area <= limits.area]
    if not is_rounded or not fitting:
        return theirs
    best = max(fitting, key=lambda one: kept_fraction(size, one))
    return best, cover_size(size, best)


def _largest_smaller(size: Size, limits: Limits, kept: float) -> Size:
    """Return the largest bucket within the limits that keeps a fraction, or as much as possible."""
    range_of_widths, heights = _sides(size.width, limits), _sides(size.height, limits)
    widths = np.array(range_of_widths, dtype=np.int64)
    widths = widths[limits.area // widths >= heights[0]]
    if not len(widths):
        return Size(range_of_widths[0], heights[0])
    as_shaped = widths / size.aspect
    nearest = _kept_by(size, _nearest(widths, as_shaped, heights, limits.area))
    wanted = min(kept, float(nearest[:, 2].max()))
    tallest = _kept_by(size, _nearest(widths, as_shaped / wanted, heights, limits.area))
    found = np.concatenate([nearest, tallest])
    good = found[found[:, 2] >= wanted]
    areas = good[:, 0] * good[:, 1]
    best = good[areas == areas.max()]
    width, height, _ = best[np.argmax(best[:, 2])].tolist()
    return Size(int(width), int(height))


def _kept_by(size: Size, buckets: Integers) -> Floats:
    """Return [buckets, 3]: width, height, and the fraction of `kept_fraction`."""
    aspects = buckets[:, 0] / buckets[:, 1]
    kept = np.minimum(aspects / size.aspect, size.aspect / aspects)
    return np.column_stack([buckets, kept])


def _lost(bucket: Size, resized: Size) -> float:
    """Return the fraction of a resized image that its bucket crops away."""
    return 1 - bucket.area / resized.area


def _cover_exactly(size: Size, bucket: Size) -> Size:
    """Scale as `cover_size` does, but round the longer side down: less than a pixel is squeezed."""
    if size.aspect > bucket.aspect:
        return Size(max(bucket.width, int(size.aspect * bucket.height)), bucket.height)
    return Size(bucket.width, max(bucket.height, int(bucket.width / size.aspect)))


def assign_as_kohya(sizes: Sequence[Size], limits: Limits) -> list[Assigned]:
    """Choose as sd-scripts does: a bucket of exactly the size, else that of the nearest aspect."""
    assigned = _by_distance(sizes, sorted(limits.buckets), _kohya_distance, at_least_bucket=False)
    exact = set(limits.buckets)
    return [
        (size, size) if size in exact else choice
        for size, choice in zip(sizes, assigned, strict=True)
    ]


def _kohya_no_upscale(size: Size, limits: Limits) -> Assigned:
    """Choose as sd-scripts' `bucket_no_upscale`: shrinks more than needed, and ignores the limits.

    Where sd-scripts would make a bucket with a side of 0 and fail, the side is one step and the
    image is enlarged to it.
    """
    bucket, resized = _shrink_as_kohya(size, limits)
    if resized.width < bucket.width or resized.height < bucket.height:
        resized = cover_size(size, bucket)
    return bucket, resized


assign_kohya_no_upscale = _one_by_one(_kohya_no_upscale)

ASSIGNMENTS: dict[tuple[Selection, bool], AssignBuckets] = {
    ("native", False): assign_native,
    ("native", True): assign_native_no_upscale,
    ("kohya", False): assign_as_kohya,
    ("kohya", True): assign_kohya_no_upscale,
}
"""(selection, never enlarge) -> the function that assigns images to buckets."""


def _by_distance(
    sizes: Sequence[Size],
    table: Sequence[Size],
    distance: Callable[[Floats, Floats], Floats],
    *,
    at_least_bucket: bool,
) -> list[Assigned]:
    """Choose the bucket with the least distance, the first of equals, and the size that covers it.

    Rounded half up as in sd-scripts; a million sizes take two seconds.
    """
    sides = np.array([size.wh for size in sizes], dtype=np.int64).reshape(-1, 2)
    chosen, resized = _nearest_buckets(sides, table, distance, at_least_bucket=at_least_bucket)
    pairs = zip(chosen.tolist(), resized.tolist(), strict=True)
    return [(table[number], Size(width, height)) for number, (width, height) in pairs]


def _nearest_buckets(
    sizes: Integers,
    table: Sequence[Size],
    distance: Callable[[Floats, Floats], Floats],
    *,
    at_least_bucket: bool,
) -> tuple[Integers, Integers]:
    """Return [sizes]: the bucket number of each, and [sizes, 2]: the size that covers it."""
    aspects = np.array([bucket.aspect for bucket in table])
    sides = np.array([bucket.wh for bucket in table], dtype=np.float64)
    numbers, covers = np.empty(len(sizes), np.int64), np.empty((len(sizes), 2), np.int64)
    for start in range(0, len(sizes), _AT_ONCE):
        portion = sizes[start : start + _AT_ONCE].astype(np.float64)
        own = portion[:, 0] / portion[:, 1]
        chosen = np.argmin(distance(aspects[None, :], own[:, None]), axis=1)
        wanted = sides[chosen]
        by_side = wanted / portion
        scale = np.where(own > aspects[chosen], by_side[:, 1], by_side[:, 0])
        resized = np.floor(portion * scale[:, None] + 0.5)
        if at_least_bucket:
            resized = np.maximum(resized, wanted)
        numbers[start : start + _AT_ONCE] = chosen
        covers[start : start + _AT_ONCE] = resized
    return numbers, covers


def assign_many(
    sizes: Integers, limits: Limits, selection: Selection, *, no_upscale: bool
) -> Integers:
    """Assign sizes to buckets as `ASSIGNMENTS` does, but as numbers, without an object per size.

    Args:
        sizes: [sizes, 2]: widths and heights.
        limits: The buckets that may be used.
        selection: Which rule chooses.
        no_upscale: Never enlarge.

    Returns:
        [sizes, 4]: bucket, and size after the resize.
    """
    if no_upscale:
        listed = [Size(width, height) for width, height in sizes.tolist()]
        assigned = ASSIGNMENTS[selection, no_upscale](listed, limits)
        return np.array([(*bucket.wh, *resized.wh) for bucket, resized in assigned], dtype=np.int64)
    is_native = selection == "native"
    table = _native_order(limits.buckets) if is_native else sorted(limits.buckets)
    chosen, resized = _nearest_buckets(
        sizes, table, _native_distance if is_native else _kohya_distance, at_least_bucket=is_native
    )
    buckets = np.array([bucket.wh for bucket in table], dtype=np.int64)
    found = np.concatenate([buckets[chosen], resized], axis=1)
    if not is_native:
        exact = np.isin(_packed(sizes), _packed(buckets))
        found[exact] = np.tile(sizes[exact], 2)
    return found


def _packed(sizes: Integers) -> Integers:
    packed: Integers = sizes[:, 0] << 32 | sizes[:, 1]
    return packed


def _sides(pixels: int, limits: Limits) -> range:
    """Return the bucket sides within the limits that an image's side fills without enlarging."""
    longest = max(limits.step, min(limits.max_side, pixels) // limits.step * limits.step)
    shortest = min(longest, -(-limits.min_side // limits.step) * limits.step)
    return range(shortest, longest + 1, limits.step)


def _nearest(widths: Integers, wanted: Floats, sides: range, area: int) -> Integers:
    """Return [2 * widths, 2]: each width with the nearest heights below and above the wanted one.

    Args:
        widths: Widths that leave room for the least height.
        wanted: [widths] heights.
        sides: The possible heights.
        area: Most pixels of a bucket.
    """
    least, step = sides[0], sides.step
    highest = least + (np.minimum(area // widths, sides[-1]) - least) // step * step
    below = least + ((wanted - least) // step).astype(np.int64) * step
    heights = [np.minimum(np.maximum(side, least), highest) for side in (below, below + step)]
    return np.column_stack([np.repeat(widths, 2), np.column_stack(heights).ravel()])


def _shrink_as_kohya(size: Size, limits: Limits) -> Assigned:
    step, aspect = limits.step, size.aspect
    resized = size
    if size.area > limits.area:
        width = math.sqrt(limits.area * aspect)
        by_width = _floored(width, step)
        by_width_other = _floored(by_width / aspect, step)
        by_height = _floored(limits.area / width, step)
        by_height_other = _floored(by_height * aspect, step)
        if abs(_ratio(by_width, by_width_other) - aspect) < abs(
            _ratio(by_height_other, by_height) - aspect
        ):
            resized = Size(max(by_width, 1), max(1, int(by_width / aspect + 0.5)))
        else:
            resized = Size(max(1, int(by_height * aspect + 0.5)), max(by_height, 1))
    bucket = Size(max(step, resized.width // step * step), max(step, resized.height // step * step))
    return bucket, resized


def _floored(length: float, step: int) -> int:
    return int(length + 0.5) // step * step


def _ratio(width: int, height: int) -> float:
    return width / height if height else math.inf
