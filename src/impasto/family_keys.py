"""The keys of the model families, as settings and options name them; imports no torch.

`models/families.py` has the families themselves, in the same order.
"""

from __future__ import annotations

from typing import Literal, get_args

FamilyKey = Literal["sd1", "sd2-base", "sd2-v", "sdxl", "sdxl-v"]
FAMILY_KEYS: tuple[str, ...] = get_args(FamilyKey)
