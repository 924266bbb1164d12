"""Opens the engine that a dataset's settings select. Imports no torch, and Ray only if selected."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

from impasto.config.dataset import DatasetConfig
from impasto.data.engines.engine import LOCAL, Engine
from impasto.invocation import missing_extra
from impasto.member_paths import folder_of
from impasto.progress import Progress

if TYPE_CHECKING:
    from impasto.data.engines.ray_engine import RayEngine

_OPEN: ContextVar[RayEngine | None] = ContextVar("_OPEN", default=None)


@contextlib.contextmanager
def open_engine(
    config: DatasetConfig, progress: Progress | None = None, also: Sequence[Path] = ()
) -> Iterator[Engine]:
    """Open the engine that the settings select, and close it afterwards.

    Inside another Ray engine, that one is used again, so a command starts Ray only once. Ray starts
    with the first work for it, not before.

    Args:
        config: The settings.
        progress: Receives notes about workers that ended.
        also: Folders that are read in addition to those of the settings.

    Raises:
        MissingDependencyError: The settings select Ray, and it is not installed.
    """
    if config.executor == "local":
        yield LOCAL
        return
    outer = _OPEN.get()
    if outer is not None:
        yield outer
        return
    if importlib.util.find_spec("ray") is None:
        raise missing_extra(
            "ray",
            "dataset.executor is ray, and Ray Data is not installed.",
            "Or set dataset.executor to local.",
        )
    from impasto.data.engines.ray_engine import RayEngine

    folders = [*_folders(config), *also]
    note = None if progress is None else progress.note
    engine = RayEngine(config.ray_address, folders, config.derived_dir, note)
    token = _OPEN.set(engine)
    try:
        yield engine
    finally:
        _OPEN.reset(token)
        engine.close()


def _folders(config: DatasetConfig) -> list[Path]:
    """Return the folders that images and masks are read from, each once."""
    named = [
        folder
        for entry in config.entries
        for subset in entry.subsets
        for folder in (subset.image_dir, subset.mask_dir)
        if folder is not None
    ]
    return list(dict.fromkeys(map(folder_of, named)))
