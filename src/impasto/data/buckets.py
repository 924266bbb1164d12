"""Aspect-ratio buckets: which sizes there are, and which one a picture goes to.

The idea is NovelAI's (NovelAI Improvements on Stable Diffusion, 2022). The table equals that of
kohya-ss/sd-scripts (`library/model_util.py`, make_bucket_resolutions), so that bucket counts mean
the same; the choice of a picture's bucket is Impasto's own and loses the least picture area.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from impasto.data.records import Box, ImageRecord, PlannedImage, Size
from impasto.errors import ConfigError


def make_bucket_sizes(area: Size, min_side: int, max_side: int, step: int) -> list[Size]:
    """List the buckets: sides in multiples of `step`, area at most that of `area`.

    Args:
        area: The training resolution; only its pixel count bounds the buckets.
        min_side: Shortest side in pixels.
        max_side: Longest side in pixels.
        step: Granularity of sides in pixels; 64 for Stable Diffusion.

    Returns:
        Sizes in ascending order of (width, height), without duplicates.

    Raises:
        ConfigError: No bucket fits the bounds.
    """
    budget = area.area
    square = step * int(math.sqrt(budget) // step)
    sizes = {Size(square, square)} if square else set()
    for width in range(min_side, max_side + 1, step):
        height = min(max_side, budget // width // step * step)
        if height >= min_side:
            sizes |= {Size(width, height), Size(height, width)}
    if not sizes:
        raise ConfigError(
            f"No aspect-ratio bucket fits resolution {area} with sides from {min_side} to "
            f"{max_side} in steps of {step}. Lower min_bucket_reso or bucket_reso_steps, or raise "
            f"the resolution."
        )
    return sorted(sizes)


def select_bucket(size: Size, buckets: Sequence[Size]) -> Size:
    """Choose the bucket that keeps the most of a picture's area; the larger one where equal.

    The kept share of a picture with aspect a in a bucket with aspect b is min(a/b, b/a): the
    distance is the ratio, not sd-scripts' difference of aspects, which favours wide pictures.
    """
    return max(
        buckets,
        key=lambda bucket: (
            min(bucket.aspect / size.aspect, size.aspect / bucket.aspect),
            bucket.area,
        ),
    )


def fit_into(size: Size, bucket: Size) -> tuple[Size, Box]:
    """Scale `size` to cover `bucket`, keeping its aspect, and centre the crop.

    Rounding is sd-scripts' (`BucketManager.select_bucket`): half up, in pixels.
    """
    if size.aspect > bucket.aspect:
        scale = bucket.height / size.height
    else:
        scale = bucket.width / size.width
    resized = Size(
        max(bucket.width, int(size.width * scale + 0.5)),
        max(bucket.height, int(size.height * scale + 0.5)),
    )
    left, top = (resized.width - bucket.width) // 2, (resized.height - bucket.height) // 2
    return resized, Box(left, top, bucket)


def place(record: ImageRecord, buckets: Sequence[Size]) -> PlannedImage:
    """Plan one picture: its bucket, its size after the resize, and the crop."""
    bucket = select_bucket(record.size, buckets)
    resized, crop = fit_into(record.size, bucket)
    return PlannedImage(record, bucket, resized, crop)
