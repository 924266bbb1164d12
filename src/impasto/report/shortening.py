"""Removes the folders of this machine from the content of reports, since reports are shared."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, is_dataclass
from pathlib import Path, PurePath
from typing import Any

from markupsafe import Markup

from impasto.member_paths import plain
from impasto.publishing import redact_text, redact_unknown_paths

FREE_TEXT = frozenset({"pairs", "same", "tag_pairs", "tags"})
"""Entries with captions and tags, in which path-like text, such as the tag `:/`, is not a path."""


def shortened(content: Any, folder_names: str, publish: Collection[str]) -> Any:
    """Shorten paths in the folders of a dataset so that they start with the folder's name.

    Other absolute paths are cut to their last part, also within sentences.

    Args:
        content: The nested values of a page or a JSON file.
        folder_names: The examined folders or files, separated by commas.
        publish: The kinds of content that may be published; with `paths`, no path is shortened.
    """
    content = _as_known(content)
    if "paths" in publish:
        return content
    paths = [Path(path) for path in (folder_names, *folder_names.split(", ")) if path]
    folders = {str(path.parent if path.suffix else path) for path in paths}
    return _shortened(content, tuple(sorted(folders - {"."})))


def _as_known(value: Any) -> Any:
    """Convert paths into tars and tables to their readable form, within nested values."""
    if isinstance(value, Markup):
        return value
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, dict):
        return {key: _as_known(item) for key, item in value.items()}
    return [_as_known(item) for item in value] if isinstance(value, list) else value


def _shortened(value: Any, folders: tuple[str, ...], *, is_free_text: bool = False) -> Any:
    if isinstance(value, Markup) or value is None:
        return value
    if isinstance(value, (str, PurePath)):
        return _text(str(value), folders, is_free_text=is_free_text)
    if is_dataclass(value) and not isinstance(value, type):
        return _shortened(asdict(value), folders)
    if isinstance(value, dict):
        return {
            _shortened(key, folders, is_free_text=is_free_text): _shortened(
                item, folders, is_free_text=is_free_text or key in FREE_TEXT
            )
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_shortened(item, folders, is_free_text=is_free_text) for item in value]
    return value


def _text(text: str, folders: tuple[str, ...], *, is_free_text: bool) -> str:
    if text.startswith("data:"):
        return text
    return redact_unknown_paths(text, folders) if is_free_text else redact_text(text, (), folders)
