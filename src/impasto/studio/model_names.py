"""The taggers and captioners that a page offers: known names, and folders of models."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from impasto import files, presence
from impasto.annotator_table import CAPTIONERS, SHIPPED_CAPTIONERS, SHIPPED_TAGGERS, TAGGERS
from impasto.hub_ids import is_hub_id
from impasto.studio.models import walk_models

_FOLDER = re.compile(r"[\w./-]*", re.ASCII)
"""Matches a folder inside a model on the Hub, which may follow its id."""


def offered_models(folders: Sequence[Path]) -> dict[str, list[str]]:
    """Return the names of taggers and captioners: known names, then folders judged by their files.

    Args:
        folders: The model folders that the studio shows.
    """
    taggers = [*TAGGERS, *SHIPPED_TAGGERS]
    captioners = [*CAPTIONERS, *SHIPPED_CAPTIONERS]
    for folder in folders:
        for path in (path for path, is_folder in walk_models(folder) if is_folder):
            if _has(path, "*.onnx"):
                taggers.append(str(path.absolute()))
            elif _has(path, "config.json") and _has(path, "*processor_config.json"):
                captioners.append(str(path.absolute()))
    return {"tagger": taggers, "captioner": captioners}


def why_not_offered(name: str, kind: str, folders: Sequence[Path]) -> str:
    """Return the reason why a page may not load a model, or an empty text if it may.

    Args:
        name: A known name, an id on the Hub, or the path of a folder or file.
        kind: `tagger` or `captioner`.
        folders: The model folders that the studio shows.
    """
    is_tagger = kind == "tagger"
    if name in (TAGGERS if is_tagger else CAPTIONERS):
        return ""
    if name in (SHIPPED_TAGGERS if is_tagger else SHIPPED_CAPTIONERS):
        return ""
    path = Path(name)
    if path.is_absolute():
        if not any(files.is_inside(path, folder) for folder in folders):
            return f"{name} is not in a model folder of the studio (--models)"
        return "" if presence.exists(path) else f"{name} does not exist"
    owner, _, rest = name.partition("/")
    model, _, folder = rest.partition("/")
    if ".." not in path.parts and is_hub_id(f"{owner}/{model}") and _FOLDER.fullmatch(folder):
        return ""
    return f"{name[:100]!r} is not a known name, a Hub id (owner/name) or an absolute path"


def _has(folder: Path, pattern: str) -> bool:
    try:
        return next(folder.glob(pattern), None) is not None
    except OSError:
        return False
