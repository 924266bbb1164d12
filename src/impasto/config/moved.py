"""Finds the derived data of a run that was moved: what lay in its directory has gone with it."""

from __future__ import annotations

import os
from pathlib import Path

from impasto.remote_paths import is_remote


def cache_of_moved_run(cache_dir: Path, output_dir: Path, directory: Path) -> Path:
    """The cache of a run, in the place where its directory is now.

    So neither reading a run that was moved nor going on with it makes a folder in its old place.

    Args:
        cache_dir: `dataset.cache_dir` as its settings name it.
        output_dir: Where it was begun, as they name it.
        directory: Where it is.

    Returns:
        The cache in `directory` where it was in `output_dir`; any other cache as it is named.
    """
    if any(map(is_remote, (cache_dir, output_dir, directory))):
        return cache_dir
    before, cache = (Path(os.path.abspath(path)) for path in (output_dir, cache_dir))  # noqa: PTH100
    if not cache.is_relative_to(before) or before.resolve() == directory.resolve():
        return cache_dir
    return directory / cache.relative_to(before)
