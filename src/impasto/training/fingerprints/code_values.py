"""What is compared by its value: tensors, arrays, and whatever holds only numbers or text."""

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
"""Values that nothing can change in place."""

NAMED = (
    torch.dtype, torch.device, range, slice, Fraction, Decimal, re.Pattern, datetime.date,
    datetime.time, datetime.timedelta,
)  # fmt: skip
"""Others of that kind, which `repr` says all about. Earlier versions took no account of them."""


def values_of(held: Any) -> Any:
    """A tensor, an array of numbers, bytes or a path as text; None of anything else."""
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
