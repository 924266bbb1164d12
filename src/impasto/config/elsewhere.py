"""Which setting of another section was meant by a key that is in the wrong one."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel


def of_that_name(path: str, root: type[BaseModel]) -> list[str]:
    """The settings of a run that are called as the key of a path, in other sections.

    Args:
        path: Of the key.
        root: What is read; only of runs there are settings elsewhere.
    """
    name = path.rpartition(".")[2]
    return [setting for setting in _settings(root) if setting.rpartition(".")[2] == name]


def nearest(path: str, root: type[BaseModel]) -> list[str]:
    """The setting of a run that is called most like the key of a path, if one is like it."""
    from impasto.config import tree  # which imports all sections, and they what reads them

    settings = _settings(root)
    found = tree.nearest(path.rpartition(".")[2], settings) if settings else None
    return [found] if found else []


def _settings(root: type[BaseModel]) -> Sequence[str]:
    from impasto.config import tree
    from impasto.config.run import RunConfig

    return list(tree.all_settings()) if root is RunConfig else []
