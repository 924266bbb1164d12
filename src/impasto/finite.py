"""Numbers as people write them: finite, since `nan` passes every comparison that should stop it."""

from __future__ import annotations

import math
from typing import Any


def finite(value: Any) -> float:
    """The number that a text or a number stands for.

    Raises:
        ValueError: It is not a number, or it is `nan` or infinite.
        TypeError: It is something else than a text or a number.
    """
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value} is not a finite number")
    return number
