"""Cuts the folders of this machine out of what a report shows; pages are made to be given away."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, is_dataclass
from pathlib import Path, PurePath
from typing import Any

from markupsafe import Markup

from impasto.publishing import last_part, published_text


def shortened(content: Any, place: str, publish: Collection[str]) -> Any:
    """The same with paths below the folders of a data set by the folder's own name.

    Args:
        content: Values as a page or a JSON file has them, nested as they are.
        place: What was looked at: folders or files, separated by commas.
        publish: What may be told; with `paths` among it nothing is changed.
    """
    if "paths" in publish:
        return content
    parts = [Path(part) for part in place.split(", ") if part]
    folders = {str(part.parent if part.suffix else part) for part in parts}
    whole = {str(Path(folder).absolute()) for folder in folders}
    longest_first = sorted((folders | whole) - {"."}, key=len, reverse=True)
    return _shortened(content, longest_first)


def _shortened(value: Any, folders: list[str]) -> Any:
    if isinstance(value, Markup) or value is None:
        return value
    if isinstance(value, PurePath):
        return _text(str(value), folders)
    if isinstance(value, str):
        return value if value.startswith("data:") else _text(value, folders)
    if is_dataclass(value) and not isinstance(value, type):
        return _shortened(asdict(value), folders)
    if isinstance(value, dict):
        return {_shortened(key, folders): _shortened(item, folders) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_shortened(item, folders) for item in value]
    return value


def _text(text: str, folders: list[str]) -> str:
    for folder in folders:
        if folder in text:
            text = text.replace(folder, last_part(folder))
    is_path = PurePath(text).is_absolute() and "\n" not in text
    return published_text(text, ()) if is_path else text
