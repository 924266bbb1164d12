"""Which bucket a picture goes to, how it is resized, and what is cropped: geometry, no pixels.

`native` loses the least picture; `kohya` equals sd-scripts' choice (`library/train_util.py`,
BucketManager.select_bucket), for runs that have to be like earlier ones. Each comes in a form that
never enlarges a picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from impasto.data.records import Box, ImageRecord, PlannedImage, Size

Selection = Literal["native", "kohya"]


@dataclass(frozen=True)
class Limits:
    """What buckets a picture may go to.

    Attributes:
        buckets: The table.
        area: Most pixels of a bucket that is made for a small picture.
        min_side: Shortest side of such a bucket, where the picture has that many pixels.
        max_side: Longest side of such a bucket.
        step: Its sides are multiples of this.
    """

    buckets: Sequence[Size]
    area: int
    min_side: int
    max_side: int
    step: int


Placed = tuple[Size, Size]
"""A bucket, and the size a picture is resized to, which covers it."""

PlaceSize = Callable[[Size, Limits], Placed]


def place(record: ImageRecord, limits: Limits, placing: PlaceSize) -> PlannedImage:
    """Plan one picture: its bucket, its size after the resize, and the crop from the middle."""
    bucket, resized = placing(record.size, limits)
    left, top = (resized.width - bucket.width) // 2, (resized.height - bucket.height) // 2
    return PlannedImage(record, bucket, resized, Box(left, top, bucket))


def kept_share(size: Size, bucket: Size) -> float:
    """How much of a picture is kept when it covers a bucket: min(a/b, b/a) of their aspects."""
    return min(bucket.aspect / size.aspect, size.aspect / bucket.aspect)


def select_bucket(size: Size, buckets: Sequence[Size]) -> Size:
    """Choose the bucket that keeps the most of a picture's area; the larger one where equal.

    The distance is the ratio of aspects, not sd-scripts' difference, which favours wide pictures.
    """
    return max(buckets, key=lambda bucket: (kept_share(size, bucket), bucket.area))


def covering(size: Size, bucket: Size) -> Size:
    """Scale `size` to cover `bucket`, keeping its aspect; rounded half up as sd-scripts does."""
    if size.aspect > bucket.aspect:
        scale = bucket.height / size.height
    else:
        scale = bucket.width / size.width
    return Size(
        max(bucket.width, int(size.width * scale + 0.5)),
        max(bucket.height, int(size.height * scale + 0.5)),
    )


def place_native(size: Size, limits: Limits) -> Placed:
    """The bucket of the table that loses the least; small pictures are enlarged to it."""
    bucket = select_bucket(size, limits.buckets)
    return bucket, covering(size, bucket)


def place_native_smaller(size: Size, limits: Limits) -> Placed:
    """The largest bucket that asks for no enlarging and crops no more than sd-scripts would.

    Buckets are not those of the table alone: any sides in steps within the limits. A side that is
    shorter than one step is the one thing that is enlarged, to one step.
    """
    widths, heights = _sides(size.width, limits), _sides(size.height, limits)
    nearest = [
        Size(width, height)
        for width in widths
        for height in _nearest(width / size.aspect, heights, limits.area // width)
    ] or [Size(widths[0], heights[0])]
    theirs = _shrunk_as_kohya(size, limits)[0]
    wanted = min(kept_share(size, theirs), max(kept_share(size, b) for b in nearest))
    tallest = [
        Size(width, height)
        for width in widths
        for height in _nearest(width / size.aspect / wanted, heights, limits.area // width)
    ]
    good = [bucket for bucket in nearest + tallest if kept_share(size, bucket) >= wanted]
    bucket = max(good, key=lambda b: (b.area, kept_share(size, b)))
    return bucket, covering(size, bucket)


def place_as_kohya(size: Size, limits: Limits) -> Placed:
    """sd-scripts' choice: the table's size itself, or else the least difference of aspects."""
    if size in limits.buckets:
        return size, size
    bucket = min(sorted(limits.buckets), key=lambda b: abs(b.aspect - size.aspect))
    if size.aspect > bucket.aspect:
        scale = bucket.height / size.height
    else:
        scale = bucket.width / size.width
    return bucket, Size(int(size.width * scale + 0.5), int(size.height * scale + 0.5))


def place_as_kohya_smaller(size: Size, limits: Limits) -> Placed:
    """sd-scripts' `bucket_no_upscale`, which shrinks more than it needs to and ignores the limits.

    Where it would make a bucket with a side of 0, and fail, the side is one step and the picture is
    enlarged to it.
    """
    bucket, resized = _shrunk_as_kohya(size, limits)
    if resized.width < bucket.width or resized.height < bucket.height:
        resized = covering(size, bucket)
    return bucket, resized


PLACINGS: dict[tuple[Selection, bool], PlaceSize] = {
    ("native", False): place_native,
    ("native", True): place_native_smaller,
    ("kohya", False): place_as_kohya,
    ("kohya", True): place_as_kohya_smaller,
}
"""(selection, never enlarge) -> how a picture is placed."""


def _sides(pixels: int, limits: Limits) -> range:
    """The sides of buckets within the limits that a picture's side fills without being enlarged."""
    longest = max(limits.step, min(limits.max_side, pixels) // limits.step * limits.step)
    shortest = min(longest, -(-limits.min_side // limits.step) * limits.step)
    return range(shortest, longest + 1, limits.step)


def _nearest(wanted: float, sides: range, most: int) -> list[int]:
    """The sides next to a length, below and above, of those that are at most `most`."""
    if sides[0] > most:
        return []
    highest = sides[(min(most, sides[-1]) - sides[0]) // sides.step]
    below = sides[0] + int((wanted - sides[0]) // sides.step) * sides.step
    return [min(max(side, sides[0]), highest) for side in (below, below + sides.step)]


def _shrunk_as_kohya(size: Size, limits: Limits) -> Placed:
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
