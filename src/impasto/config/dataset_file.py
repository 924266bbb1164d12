"""Converts sd-scripts' dataset configurations, TOML or JSON, into settings of `[dataset]`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from impasto.config.dataset import DatasetConfig, DatasetKeys
from impasto.config.levels import given_below, inherit_settings
from impasto.config.setting_files import DATASET_FILE, read_json_object, read_toml
from impasto.config.subset_keys import SubsetKeys
from impasto.config.validation import validated
from impasto.errors import ConfigError

SDSCRIPTS_DEFAULTS: dict[str, Any] = {
    "enable_bucket": False,
    "bucket_selection": "kohya",
    "bucket_table": "metadata",
    "flip_safe": [],
    "latents_from_npz": True,
    "recursive": False,
}
"""sd-scripts' defaults for keys that its file does not set, where they differ from ours."""

_TABLE = "bucket_table"
_DEFAULTS = {key: value for key, value in SDSCRIPTS_DEFAULTS.items() if key != _TABLE}
"""The defaults that hold whatever else a dataset sets; its own table of buckets replaces the
other."""

_LEVELS = ("general", "datasets")
_MASKS = "conditioning_data_dir"
_ALWAYS = "cache_info"  # sizes and captions are cached in any case


def read_dataset_file(
    path: Path, fallbacks: Mapping[str, Any] | None = None, *, formerly: bool = False
) -> dict[str, Any]:
    """Read a dataset configuration as the content of our `[dataset]`.

    Precedence is sd-scripts': subset, dataset, general, `fallbacks` (there the command line), its
    defaults. As there, limits of bucket sides that are not multiples of the step are rounded
    outwards, and `bucket_no_upscale` has no effect on a dataset without buckets.
    `conditioning_data_dir` of a subset becomes its `mask_dir`: masks of the loss, as for
    `sdxl_train.py --masked_loss` (docs/masked_loss_README.md there).

    Args:
        path: A `.toml` or `.json` file.
        fallbacks: Values of dataset keys that the file does not set.
        formerly: Whether to keep what earlier versions kept: bucket settings without effect, and
            the table `metadata` beside `buckets`. For a run that was started with them.

    Raises:
        ConfigError: The file is missing or malformed, a key is unknown or has no effect here, or a
            value does not fit; with file, key path, and line where the parser knows it.
    """
    content = _with_own_keys(_read(path), path)
    unknown = sorted(set(content) - set(_LEVELS))
    if unknown:
        raise ConfigError(
            f"{path}: unknown key {unknown[0]} at the top level; known here: {', '.join(_LEVELS)}. "
            f"Settings shared by all datasets go into [general]."
        )
    if not content.get("datasets"):
        raise ConfigError(f"{path} has no [[datasets]]; expected at least one, with subsets.")
    if not isinstance(content["datasets"], list):
        raise ConfigError(
            f"{path}: datasets is {content['datasets']!r}; expected [[datasets]] tables."
        )
    general = content.get("general")
    if isinstance(general, dict):
        rounded = round_bucket_sides(general)
        content["general"] = {k: rounded.get(k, value) for k, value in general.items()}
    values = inherit_settings(
        {**_DEFAULTS, **(fallbacks or {}), **content},
        DatasetKeys.model_fields,
        SubsetKeys.model_fields,
    )
    for dataset in values["datasets"]:
        if isinstance(dataset, dict):
            dataset.update(round_bucket_sides(dataset))
            _resolve_buckets(dataset, formerly=formerly)
    values.update(round_bucket_sides(values))
    validated(DatasetConfig, values, str(path), begun=formerly)
    return {"datasets": values["datasets"]}


def names_masks(path: Path) -> bool:
    """Return whether a subset of a dataset configuration has `conditioning_data_dir`.

    Raises:
        ConfigError: The file is missing or malformed.
    """
    return any(_MASKS in level for level in _levels_of(_read(path)))


def repeated_sources(path: Path) -> list[str]:
    """Return the image folders and metadata files that several subsets of one dataset name.

    sd-scripts uses only the first of several subsets with the same folder or file
    (`DreamBoothDataset` and `FineTuningDataset` in `library/train_util.py`).

    Raises:
        ConfigError: The file is missing or malformed.
    """
    datasets = _read(path).get("datasets")
    repeated = list[str]()
    for dataset in datasets if isinstance(datasets, list) else ():
        subsets = _subsets_of([dataset] if isinstance(dataset, dict) else [])
        names = [
            str(subset.get("metadata_file") or subset.get("image_dir"))
            for subset in subsets
            if (subset.get("metadata_file") or subset.get("image_dir"))
            and subset.get("num_repeats") != 0
        ]
        repeated += [name for name in dict.fromkeys(names) if names.count(name) > 1]
    return list(dict.fromkeys(repeated))


def keys_of_all_datasets(path: Path, keys: Iterable[str]) -> list[str]:
    """Return those of `keys` that a dataset configuration sets for every dataset in it.

    A fallback for such a key has no effect (`read_dataset_file`).

    Raises:
        ConfigError: The file is missing or malformed.
    """
    return given_below(_with_own_keys(_read(path), path), keys)


def _levels_of(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the tables of a configuration: `general`, each dataset, and each subset."""
    datasets = content.get("datasets")
    tables = [content.get("general"), *(datasets if isinstance(datasets, list) else ())]
    levels = [table for table in tables if isinstance(table, dict)]
    return [*levels, *_subsets_of(levels)]


def _subsets_of(levels: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    found = [table.get("subsets") for table in levels]
    subsets = [subset for own in found if isinstance(own, list) for subset in own]
    return [subset for subset in subsets if isinstance(subset, dict)]


def _with_own_keys(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the content with `mask_dir` in place of sd-scripts' name, and without `cache_info`.

    Only subsets have this key; in other tables it is left in place, so that it is refused under the
    name in the file.

    Raises:
        ConfigError: A table has both names.
    """
    levels = _levels_of(content)
    for table in levels:
        table.pop(_ALWAYS, None)
    for table in _subsets_of(levels):
        if _MASKS in table and "mask_dir" in table:
            raise ConfigError(
                f"{path}: {_MASKS} and mask_dir of one table are the same setting; set only one."
            )
        if _MASKS in table:
            table["mask_dir"] = table.pop(_MASKS)
    return content


def is_dataset_file(path: Path) -> bool:
    """Return whether a TOML or JSON file is a dataset configuration, not the settings of a run.

    Raises:
        ConfigError: The file is missing or malformed.
    """
    return "datasets" in _read(path, halves=True)


def _read(path: Path, *, halves: bool = False) -> dict[str, Any]:
    """Return the content of a file; a metadata file may contain lone surrogates if `halves`."""
    if path.suffix.lower() != ".json":
        return read_toml(path, DATASET_FILE)
    return read_json_object(path, DATASET_FILE, halves=halves)


def _resolve_buckets(dataset: dict[str, Any], *, formerly: bool) -> None:
    """Set the bucket table of a dataset, and remove bucket settings without effect on it."""
    has_own = bool(dataset.get("buckets")) and not formerly
    dataset.setdefault(_TABLE, "resolution" if has_own else SDSCRIPTS_DEFAULTS[_TABLE])
    if dataset["enable_bucket"] is False and not formerly:
        dataset.pop("bucket_no_upscale", None)


def round_bucket_sides(values: Mapping[str, Any]) -> dict[str, int]:
    """Return the limits of bucket sides, rounded outwards to multiples of the step."""
    defaults = DatasetKeys.model_fields
    step, low, high = (
        values.get(name, defaults[name].default)
        for name in ("bucket_reso_steps", "min_bucket_reso", "max_bucket_reso")
    )
    if not all(type(value) is int and value > 0 for value in (step, low, high)):
        return {}  # the fault is reported when the values are validated
    return {
        "min_bucket_reso": max(step, low // step * step),
        "max_bucket_reso": -(-high // step) * step,
    }
