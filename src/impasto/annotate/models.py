"""Where the files of taggers and captioners are, by path, short name or Hub id."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path

from impasto.annotator_table import CAPTIONERS, TAGGERS
from impasto.checkpoints.downloads import download_snapshot
from impasto.checkpoints.hub_faults import hub_faults
from impasto.errors import ConfigError
from impasto.progress import Progress

__all__ = ["CAPTIONERS", "TAGGERS", "locate_captioner", "locate_tagger"]

_FILES = ("*.onnx", "*.csv", "*.txt", "*.json")


def locate_tagger(name: str, progress: Progress) -> Path:
    """The folder of a tagger, or its file; downloaded if it is not here yet.

    Args:
        name: A path, a short name of `TAGGERS`, or a Hub id, perhaps with a folder in it.
        progress: Is told of a download.

    Raises:
        ConfigError: There is no such name; with the nearest.
        ModelError: It could not be downloaded.
    """
    path = Path(name)
    if path.exists():
        return path
    hub_id = TAGGERS[name].hub_id if name in TAGGERS else name
    owner, _, rest = hub_id.partition("/")
    repository, _, folder = rest.partition("/")
    if not repository or path.suffix:
        raise ConfigError(_unknown(name, TAGGERS))
    hint = "the network" if name in TAGGERS else "the spelling and the network"
    return _downloaded(f"{owner}/{repository}", folder, hint, progress) / folder


def locate_captioner(name: str) -> str:
    """Find a captioner: a folder, or its id on the Hub.

    Raises:
        ConfigError: There is no such name; with the nearest.
    """
    if Path(name).exists():
        return name
    if name in CAPTIONERS:
        return CAPTIONERS[name]
    if name.count("/") != 1 or Path(name).suffix:
        raise ConfigError(_unknown(name, CAPTIONERS))
    return name


def _unknown(name: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.3)
    return (
        f"There is no model {name!r}: neither a path that exists, nor a known name, nor a Hub id "
        f"(owner/name). The nearest names are {', '.join(near) or 'none'}; known are "
        f"{', '.join(known)}."
    )


def _downloaded(hub_id: str, folder: str, hint: str, progress: Progress) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    patterns = [f"{folder}/{p}" if folder else p for p in _FILES]
    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError):
        pass  # it is not here yet

    def sentence_of(reason: str) -> str:
        return (
            f"{hub_id} is not a folder on this machine and could not be downloaded from the "
            f"Hugging Face Hub ({reason}). Check {hint}, or give the path of a local copy: the "
            f"folder with the .onnx and its tags."
        )

    with hub_faults(sentence_of):
        return download_snapshot(hub_id, progress, repo_id=hub_id, allow_patterns=patterns)
