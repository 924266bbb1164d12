"""Files named on the command line with a strength: `FILE` or `FILE:STRENGTH`."""

from __future__ import annotations

import math
from pathlib import Path

from impasto.errors import ConfigError


def path_and_strength(spec: str) -> tuple[Path, float]:
    """Parse `FILE` or `FILE:STRENGTH`; the strength is 1 by default.

    Raises:
        ConfigError: The strength is NaN or infinite.
    """
    path, colon, number = spec.rpartition(":")
    try:
        strength = float(number) if colon else 1.0
    except ValueError:  # a drive of Windows, or a colon in the name
        return Path(spec), 1.0
    if not math.isfinite(strength):
        raise ConfigError(f"The strength of {path} is {number}; expected a number such as 0.8.")
    return Path(path if colon else spec), strength
