"""Tables of aspect-ratio buckets.

The idea is NovelAI's (NovelAI Improvements on Stable Diffusion, 2022).
`data/planning/bucket_assignment.py` chooses an image's bucket.
"""

from __future__ import annotations

import math

from impasto.data.records import Size
from impasto.errors import ConfigError

NOVELAI_AREA = Size(512, 768)
NOVELAI_MIN, NOVELAI_MAX, NOVELAI_STEP = 256, 1024, 64
NOVELAI_SQUARE = Size(512, 512)


def make_bucket_sizes(area: Size, min_side: int, max_side: int, step: int) -> list[Size]:
    """List the buckets: sides in multiples of `step`, area at most that of `area`.

    Equal to kohya-ss/sd-scripts' (`library/model_util.py`, make_bucket_resolutions), so that bucket
    counts agree.

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


def novelai_bucket_sizes() -> list[Size]:
    """Return the 19 buckets that NovelAI's model was trained with, in ascending order.

    NovelAI/novelai-aspect-ratio-bucketing, `bucketmanager.py`, its default settings: for each width
    the tallest height within 512x768 pixels, the mirrored sizes, and 512x512.
    """
    sizes = {NOVELAI_SQUARE}
    for width in range(NOVELAI_MIN, NOVELAI_MAX + 1, NOVELAI_STEP):
        height = min(NOVELAI_MAX, NOVELAI_AREA.area // width // NOVELAI_STEP * NOVELAI_STEP)
        if height >= NOVELAI_MIN:
            sizes |= {Size(width, height), Size(height, width)}
    return sorted(sizes)
