"""Parses finite numbers: `nan` would pass every comparison that should refuse it."""

from __future__ import annotations

import math
from typing import Any


def finite(value: Any) -> float:
    """Return a number, or a text that contains one, as a finite float.

    Raises:
        ValueError: The value is not a number, or it is `nan` or infinite.
        TypeError: The value is neither a text nor a number.
    """
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value} is not a finite number")
    return number
