"""The syntax of model ids on the Hugging Face Hub: `owner/name`."""

from __future__ import annotations

import re

_NAME = r"[A-Za-z0-9_][\w.-]{0,95}"
"""Matches the characters and the length that huggingface_hub's `validate_repo_id` accepts."""

_HUB_ID = re.compile(rf"{_NAME}/{_NAME}", re.ASCII)
_SHORT_ID = re.compile(_NAME, re.ASCII)


def is_hub_id(text: str, *, short: bool = False) -> bool:
    """Return whether a text may be the id of a model on the Hub; the Hub is not asked.

    Args:
        text: The text, without a revision.
        short: Whether a name without an owner is accepted too, since the oldest models have such
            names.
    """
    is_short = short and _SHORT_ID.fullmatch(text) is not None
    return is_short or _HUB_ID.fullmatch(text) is not None
