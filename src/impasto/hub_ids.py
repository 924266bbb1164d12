"""The syntax of model ids on the Hugging Face Hub: `owner/name`."""

from __future__ import annotations

import re

_NAME = r"[A-Za-z0-9_][\w.-]{0,95}"
"""The letters and the length that huggingface_hub's `validate_repo_id` takes."""

_HUB_ID = re.compile(rf"{_NAME}/{_NAME}", re.ASCII)
_SHORT_ID = re.compile(_NAME, re.ASCII)


def is_hub_id(text: str, *, short: bool = False) -> bool:
    """Whether a text may be the id of a model on the Hub; nothing is looked up.

    Args:
        text: The text, without a revision.
        short: Whether a name without an owner counts too, as the oldest models have it.
    """
    is_short = short and _SHORT_ID.fullmatch(text) is not None
    return is_short or _HUB_ID.fullmatch(text) is not None
