"""Descriptions of values that are compared by value: tensors, arrays, bytes, paths and numbers."""

from __future__ import annotations

import datetime
import hashlib
import re
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from impasto.models.networks.vae import tensors_fingerprint

SIMPLE = (bool, int, float, complex, str, bytes, PurePath, np.generic)
"""Immutable types whose values are compared."""

NAMED = (
    torch.dtype, torch.device, range, slice, Fraction, Decimal, re.Pattern, datetime.date,
    datetime.time, datetime.timedelta,
)  # fmt: skip
"""Further immutable types, described completely by `repr`. Earlier versions ignored them."""


def values_of(held: Any) -> Any:
    """Return a JSON description of a tensor, numeric array, bytes, path or complex number.

    None for any other value.
    """
    if isinstance(held, Tensor):
        return tensors_fingerprint({"": held})
    if isinstance(held, (np.ndarray, np.generic)) and held.dtype != object:
        values = hashlib.sha256(held.tobytes()).hexdigest()
        return [str(held.dtype), list(held.shape), values]
    if isinstance(held, (bytes, bytearray)):
        return ["bytes", held.hex()]
    if isinstance(held, PurePath):
        return ["path", held.as_posix()]
    if isinstance(held, complex):
        return ["complex", held.real, held.imag]
    return None
