"""Which taggers and captioners a page offers: known names, and folders that are shown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from impasto import files, presence
from impasto.annotator_table import CAPTIONERS, SHIPPED_CAPTIONERS, SHIPPED_TAGGERS, TAGGERS
from impasto.hub_ids import is_hub_id
from impasto.studio.models import walk_models

_FOLDER = re.compile(r"[\w./-]*", re.ASCII)
"""A folder of a model on the Hub, behind its id."""


def offered_models(folders: Sequence[Path]) -> dict[str, list[str]]:
    """The names of taggers and captioners: those that are known, then folders by what is in them.

    Args:
        folders: The folders of models that the studio was given.
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
    """Why a model is not loaded for a page; empty where it is.

    Args:
        name: A known name, an id on the Hub, or the path of a folder or file.
        kind: `tagger` or `captioner`.
        folders: The folders of models that the studio was given.
    """
    is_tagger = kind == "tagger"
    if name in (TAGGERS if is_tagger else CAPTIONERS):
        return ""
    if name in (SHIPPED_TAGGERS if is_tagger else SHIPPED_CAPTIONERS):
        return ""
    path = Path(name)
    if path.is_absolute():
        if not any(files.is_inside(path, folder) for folder in folders):
            return f"{name} is not in a folder of models that the studio was given (--models)"
        return "" if presence.exists(path) else f"{name} is not there"
    owner, _, rest = name.partition("/")
    model, _, folder = rest.partition("/")
    if ".." not in path.parts and is_hub_id(f"{owner}/{model}") and _FOLDER.fullmatch(folder):
        return ""
    return (
        f"{name[:100]!r} is no name that is known here, no Hub id (owner/name), and no whole path"
    )


def _has(folder: Path, pattern: str) -> bool:
    try:
        return next(folder.glob(pattern), None) is not None
    except OSError:
        return False
