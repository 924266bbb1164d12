"""Translates sd-scripts' flags of the dataset: its files, resolution, masks and weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from impasto import presence
from impasto.config.dataset_file import (
    SDSCRIPTS_DEFAULTS,
    names_masks,
    read_dataset_file,
    repeated_sources,
    round_bucket_sides,
)
from impasto.errors import ConfigError
from impasto.sdscripts.values import read_numbers, read_resolution

Tree = dict[str, Any]


def set_dataset(flags: Mapping[str, Any], tree: Tree) -> list[str]:
    """Set the dataset to a dataset configuration, a folder or a metadata file; return notices.

    Raises:
        ConfigError: None of them is given, or a value is missing or invalid.
    """
    dataset = tree.setdefault("dataset", {})
    if "resolution" in flags:
        dataset["resolution"] = read_resolution(flags["resolution"])
    if "face_crop_aug_range" in flags:
        dataset["face_crop_aug_range"] = read_numbers("face_crop_aug_range", flags, 2)
    told = _weigh_regularisation(flags, dataset)
    if "dataset_config" in flags:
        return told + _take_config(flags, dataset)
    if "train_data_dir" not in flags and "in_json" not in flags:
        raise ConfigError("Give --dataset_config, or --train_data_dir.")
    if "resolution" not in flags:
        raise ConfigError("--resolution is missing. Give it, as 512 or 512,768.")
    for key, value in SDSCRIPTS_DEFAULTS.items():
        dataset.setdefault(key, value)
    told += _without_idle_buckets(dataset)
    dataset |= round_bucket_sides(dataset)
    if "train_data_dir" in flags:
        dataset["image_dir"] = flags["train_data_dir"]
    if "in_json" in flags:
        dataset["metadata_file"] = flags["in_json"]
    return told


def _take_config(flags: Mapping[str, Any], dataset: Tree) -> list[str]:
    """Set the dataset to a dataset configuration, which overrides other flags for images.

    Raises:
        ConfigError: It has masks, and --masked_loss is not given.
    """
    config = dataset["config"] = flags["dataset_config"]
    is_there = presence.is_file(Path(config))  # a missing file is reported when it is read
    if is_there and names_masks(Path(config)) and not flags.get("masked_loss"):
        raise ConfigError(
            f"{config} has conditioning_data_dir, which sd-scripts uses for masks only with "
            f"--masked_loss, in train_db.py and sdxl_train.py. Add --masked_loss there, or remove "
            f"conditioning_data_dir."
        )
    ignored = [name for name in ("train_data_dir", "in_json") if name in flags]
    told = [f"--{name}: --dataset_config is given, so it is not used." for name in ignored]
    return told + [
        f"--dataset_config: several subsets of one dataset name {source}, and all of them are "
        f"trained on; sd-scripts uses only the first."
        for source in (repeated_sources(Path(config)) if is_there else ())
    ]


def _without_idle_buckets(dataset: Tree) -> list[str]:
    """Remove bucket_no_upscale if buckets are off, and return a notice about it."""
    if dataset["enable_bucket"] or not dataset.pop("bucket_no_upscale", False):
        return []
    return ["--bucket_no_upscale: it has no effect without --enable_bucket, as there."]


def _weigh_regularisation(flags: Mapping[str, Any], dataset: Tree) -> list[str]:
    """Set the loss weight of regularisation images; return a notice if there are none."""
    weight = flags.get("prior_loss_weight", 1.0)
    if weight == 1.0:
        return []
    if not (flags.get("reg_data_dir") or _has_regularisation(flags.get("dataset_config"))):
        return ["--prior_loss_weight: it has no effect without regularisation images."]
    dataset["prior_loss_weight"] = weight
    return []


def _has_regularisation(config: str | None) -> bool:
    if config is None or not presence.is_file(Path(config)):
        return False
    entries = read_dataset_file(Path(config), formerly=True)["datasets"]
    return any(subset.get("is_reg") for entry in entries for subset in entry["subsets"])
