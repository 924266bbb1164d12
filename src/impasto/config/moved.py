"""Resolves paths in a run's settings if its directory was moved or the current folder differs.

Relative paths in settings start at the folder in which the run was started, which `status.json`
records. A run that was moved together with its data is resumed in the new location of that folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from impasto import presence
from impasto.member_paths import WILD
from impasto.parsing import read_object
from impasto.publishing import is_path_key
from impasto.remote_paths import is_remote

_MADE = frozenset({"cache_dir", "model_dir", "output_dir"})
"""Folders that a run creates itself, so that they need not exist."""

_NO_NAMES = {"", ".", ".."}


def cache_of_moved_run(cache_dir: Path, output_dir: Path, directory: Path) -> Path:
    """Return the cache folder of a run, moved along if it is within the run directory.

    Thus neither reading a run that was moved nor resuming it creates a folder at the old location.

    Args:
        cache_dir: `dataset.cache_dir` as the settings have it.
        output_dir: The original run directory, as the settings have it.
        directory: The present run directory.

    Returns:
        The cache folder within `directory` if it was within `output_dir`; any other one unchanged.
    """
    if any(map(is_remote, (cache_dir, output_dir, directory))):
        return cache_dir
    before, cache = (Path(os.path.abspath(path)) for path in (output_dir, cache_dir))  # noqa: PTH100
    if not cache.is_relative_to(before) or before.resolve() == directory.resolve():
        return cache_dir
    return directory / cache.relative_to(before)


def folder_of_paths(values: Mapping[str, Any], directory: Path) -> Path:
    """Return the folder at which the relative paths of a run's settings start.

    Args:
        values: The settings, as stored in the run directory.
        directory: The run directory.

    Returns:
        The current folder if it has every path that the folder where the run was started has, or,
            if that has none, at least one of them, or if that folder is unknown; else the folder
            where the run was started.
    """
    here = Path.cwd()
    recorded = (read_object(directory / "status.json") or {}).get("folder")
    if not isinstance(recorded, str) or not presence.is_dir(Path(recorded)):
        return here
    before = Path(recorded)
    named = {path for key, path in _relative_paths(values) if key not in _MADE}
    there = {path for path in named if _is_there(before / path)}
    if there:
        return here if all(_is_there(here / path) for path in there) else before
    return here if any(_is_there(here / path) for path in named) else before


def _is_there(path: Path) -> bool:
    """Return whether a path exists; for a pattern such as `cats-*.tar`, whether a file matches."""
    if presence.exists(path):
        return True
    return WILD.search(path.name) is not None and any(path.parent.glob(path.name))


def as_seen_from(value: Any, folder: Path, key: str = "") -> Any:
    """Return settings with the relative paths that start at a folder made absolute.

    A path that does not exist is left unchanged, since it may be a name on the Hub; except for
    folders that the run creates itself.

    Args:
        value: The settings as plain values, or a part of them.
        folder: The folder at which relative paths start.
        key: The name of the part.
    """
    if isinstance(value, Mapping):
        return {name: as_seen_from(inner, folder, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [as_seen_from(inner, folder, key) for inner in value]
    if not isinstance(value, str) or not is_path_key(key) or is_remote(value):
        return value
    if Path(value).is_absolute():
        return value
    if key in _MADE or _is_there(folder / value):
        return str(folder / value)
    file, colon, strength = value.rpartition(":")  # FILE:STRENGTH
    if key == "hypernetworks" and file and presence.exists(folder / file):
        return f"{folder / file}{colon}{strength}"
    return value


def _relative_paths(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield setting names and their relative paths, which may be names on the Hub instead.

    Paths that exist in every folder, such as `.`, prove nothing and are left out.
    """
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _relative_paths(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _relative_paths(inner, key)
    elif isinstance(value, str) and is_path_key(key) and not is_remote(value):
        path = value.rpartition(":")[0] or value if key == "hypernetworks" else value
        if not Path(path).is_absolute() and Path(path).name not in _NO_NAMES:
            yield key, path
