"""Flattens a tree of settings: values by their paths, such as `dataset.datasets[0].resolution`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def values_by_path(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the path and the value of each leaf of a tree.

    A list is a value, unless all its items are tables. An empty table is a value too.

    Args:
        tree: Tables, lists and values, as parsed from TOML or JSON.
        path: The path of the tree itself.
    """
    if isinstance(tree, Mapping) and tree:
        for key, inner in tree.items():
            yield from values_by_path(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, list) and tree and all(isinstance(item, Mapping) for item in tree):
        for number, item in enumerate(tree):
            yield from values_by_path(item, f"{path}[{number}]")
    else:
        yield path, tree
