"""Passes dataset settings down: from all datasets to each, and from a dataset to its subsets."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Any


def inherit_settings(
    values: Mapping[str, Any], shared: Container[str], of_subsets: Container[str]
) -> dict[str, Any]:
    """Give each dataset and subset the keys that are only set on a level above.

    Args:
        values: The content of `[dataset]`.
        shared: The keys that datasets accept.
        of_subsets: The keys that subsets accept too.
    """
    result = dict(values)
    datasets = result.get("datasets")
    general = result.get("general")
    if isinstance(general, Mapping):
        result |= {k: v for k, v in general.items() if k in shared}
    if isinstance(datasets, (list, tuple)):
        above = {k: v for k, v in result.items() if k in shared}
        result["datasets"] = [_with_subsets(above, dataset, of_subsets) for dataset in datasets]
    return result


def given_below(values: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    """Return those of `keys` that every dataset sets itself, so that higher levels have no effect.

    Args:
        values: The content of `[dataset]`, or of a dataset configuration.
        keys: The keys to check.
    """
    general, datasets = values.get("general"), values.get("datasets")
    above = set(general) if isinstance(general, Mapping) else set()
    given = []
    for table in datasets if isinstance(datasets, (list, tuple)) else ():
        if isinstance(table, Mapping):
            own = table.get("subsets")
            listed = own if isinstance(own, (list, tuple)) else ()
            subsets = [set(subset) for subset in listed if isinstance(subset, Mapping)]
            of_subsets = set.intersection(*subsets) if subsets else set()
            given.append(above | set(table) | of_subsets)
    return [key for key in keys if given and all(key in level for level in given)]


def _with_subsets(above: Mapping[str, Any], dataset: Any, of_subsets: Container[str]) -> Any:
    if not isinstance(dataset, Mapping):
        return dataset
    merged = {**above, **dataset}
    inherited = {k: v for k, v in merged.items() if k in of_subsets}
    subsets = merged.get("subsets")
    if isinstance(subsets, (list, tuple)):
        merged["subsets"] = [
            {**inherited, **subset} if isinstance(subset, Mapping) else subset for subset in subsets
        ]
    return merged
