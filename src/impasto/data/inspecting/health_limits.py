"""Limits of the report on a dataset; separate, so that pages need not import the dataset code."""

from __future__ import annotations

TOKEN_LIMITS = (75, 150, 225)
SIDES = ("left", "right")
NEAR_DUPLICATE_BITS = 6  # of 64; saved again as a smaller JPEG, a photograph changes 0 to 4
