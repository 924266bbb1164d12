"""Checks of the limits of bucket sides: multiples of the step, around the resolution.

kohya-ss/sd-scripts requires the same (`library/train_util.py`,
adjust_min_max_bucket_reso_by_steps), after rounding sides to the step.
"""

from __future__ import annotations


def require_steps(low: int, high: int, step: int) -> None:
    """Check that the limits of bucket sides are multiples of the step.

    Args:
        low: `min_bucket_reso` in pixels.
        high: `max_bucket_reso` in pixels.
        step: `bucket_reso_steps` in pixels.

    Raises:
        ValueError: One of them is not.
    """
    for name, side in (("min_bucket_reso", low), ("max_bucket_reso", high)):
        if side % step:
            raise ValueError(
                f"{name} is {side}; expected a multiple of bucket_reso_steps ({step}), such as "
                f"{max(step, round(side / step) * step)}"
            )


def require_around(low: int, high: int, resolution: tuple[int, int]) -> None:
    """Check that a bucket can be as large as the resolution.

    Args:
        low: `min_bucket_reso` in pixels.
        high: `max_bucket_reso` in pixels.
        resolution: Width and height in pixels.

    Raises:
        ValueError: The shortest side is above the longest or the resolution, or the longest below
            the resolution.
    """
    if low > high:
        raise ValueError(f"min_bucket_reso {low} is above max_bucket_reso {high}")
    asked = "x".join(map(str, resolution))
    if low > min(resolution):
        raise ValueError(
            f"min_bucket_reso is {low}, above the resolution {asked}; expected at most "
            f"{min(resolution)}. Lower min_bucket_reso, or raise the resolution"
        )
    if high < max(resolution):
        raise ValueError(
            f"max_bucket_reso is {high}, below the resolution {asked}; expected at least "
            f"{max(resolution)}. Raise max_bucket_reso, or lower the resolution"
        )
