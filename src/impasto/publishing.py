"""What of a run's settings may leave the machine: in an exported file, or in a page to show.

An exported model and a report are made to be given away. Whole paths name a person and their
folders, and prompts are words that nobody asked to publish; both stay out unless `saving.publish`
names them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, Literal

Publishable = Literal["paths", "prompts"]

PATH_KEYS = frozenset({
    "cache_dir", "config", "hypernetworks", "image_dir", "mask_dir", "metadata_file", "model_dir",
    "output_dir", "path", "prompt_file", "start_from", "template_file", "vae",
})  # fmt: skip
"""Settings that name a file or a folder; of a path its last part is kept."""

PROMPT_KEYS = frozenset({"prompts", "negative_prompt"})
_FREE_TEXTS = frozenset({"metadata"})  # what the user wrote for the file to say
_ABSOLUTE = re.compile(r"(?:~[\w.-]*)?[/\\]|[A-Za-z]:[/\\]")
_ABSOLUTE_INSIDE = re.compile(
    r"""(?<![\w:/\\.~-])(?:~[\w.-]*[/\\]|[A-Za-z]:[/\\]|[/\\](?=[^\s/\\]))[^\s"'<>|]*"""
)


def published_settings(settings: Mapping[str, Any], publish: Collection[str]) -> dict[str, Any]:
    """Settings as they may be given away.

    Args:
        settings: The resolved tree, as plain values.
        publish: What may be told besides: `paths`, `prompts`.
    """
    return {
        key: _published(key, value, publish)
        for key, value in settings.items()
        if "prompts" in publish or key not in PROMPT_KEYS
    }


def published_text(text: str, publish: Collection[str]) -> str:
    """A sentence in which absolute paths are cut to their last part, unless they may be told."""
    if "paths" in publish:
        return text
    return _ABSOLUTE_INSIDE.sub(lambda match: last_part(match[0]), text)


def last_part(path: str) -> str:
    """The last part of a path of any system; what is left where that is a whole drive is empty."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def _published(key: str, value: Any, publish: Collection[str]) -> Any:
    if key in _FREE_TEXTS:
        return value
    if isinstance(value, Mapping):
        return published_settings(value, publish)
    if isinstance(value, (list, tuple)):
        return [_published(key, item, publish) for item in value]
    if isinstance(value, str) and "paths" not in publish:
        return last_part(value) if key in PATH_KEYS or _ABSOLUTE.match(value) else value
    return value
