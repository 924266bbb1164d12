"""Converts DreamBooth-style folders, which hold folders named `N_class`, into subsets.

`10_sks dog` is a subset whose images are shown ten times per epoch, with the caption `sks dog` for
those without a caption file. Folders within it are not searched unless `recursive` is set:
kohya-ss/sd-scripts, `library/config_util.py`, generate_dreambooth_subsets_config_by_subdirs.
sd-scripts skips a folder with another kind of name; here it is refused, since its images would be
missing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from impasto import presence
from impasto.config.locations import remote_fault
from impasto.errors import ConfigError

_TRAIN, _REGULARISATION = "train_data_dir", "reg_data_dir"
_NAME = re.compile(r"([0-9]{1,9})(?:_(.*))?", re.DOTALL)
_OTHERS = ("image_dir", "metadata_file", "datasets", "config")
_MASKS = "-masks"
_MOST_REPEATS = 9_999  # 20240315_beach is a date


def with_dreambooth_folders(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of `[dataset]` with subsets in place of `train_data_dir`.

    Args:
        values: The content; may have `train_data_dir`, and `reg_data_dir` beside it.

    Raises:
        ConfigError: A folder is missing or badly named, or the images are given in two ways.
    """
    content = dict(values)
    train, regularisation = content.pop(_TRAIN, None), content.pop(_REGULARISATION, None)
    if train is None and regularisation is None:
        return content
    for name, value in ((_TRAIN, train), (_REGULARISATION, regularisation)):
        if value is not None and not isinstance(value, (str, Path)):
            raise ConfigError(f"dataset.{name} is {value!r}; expected the path of a folder.")
    if train is None:
        raise ConfigError(
            "dataset.reg_data_dir is set without dataset.train_data_dir: regularisation images are "
            "shown as often as the training images. Set both."
        )
    twice = [name for name in _OTHERS if content.get(name) is not None]
    if twice:
        raise ConfigError(
            f"dataset.train_data_dir and dataset.{twice[0]} contradict each other: both say where "
            f"the images are. Remove one of them."
        )
    subsets = dreambooth_subsets(train, regularisation)
    masks = content.pop("mask_dir", None)
    for subset in subsets:
        if "recursive" not in content:
            subset["recursive"] = False
        if masks is not None and not subset.get("is_reg"):
            subset["mask_dir"] = masks
    content["datasets"] = [{"subsets": subsets}]
    return content


def holds_dreambooth_folders(folder: Path) -> bool:
    """Return whether a folder holds a folder named `N_class`.

    Raises:
        ConfigError: The folder cannot be read.
    """
    return presence.is_dir(folder) and any(_NAME.fullmatch(name) for name in _folders_in(folder))


def holds_files_of_ending(folder: Path, ending: str) -> bool:
    """Return whether an `N_class` folder within `folder` holds a file with the extension `ending`.

    False if a folder cannot be read: the code that reads its images reports the error.
    """
    try:
        inside = [name for name in _folders_in(folder) if _NAME.fullmatch(name)]
        return any(
            name.lower().endswith(ending) for sub in inside for name in os.listdir(folder / sub)
        )
    except (ConfigError, OSError):
        return False


def dreambooth_subsets(
    train_data_dir: str | Path, reg_data_dir: str | Path | None = None
) -> list[dict[str, Any]]:
    """Return the subsets for the `N_class` folders within two folders, in the order of their names.

    Hidden folders and those with 0 repeats are skipped.

    Args:
        train_data_dir: Folder that holds the folders of training images.
        reg_data_dir: Folder that holds those of regularisation images; None means none.

    Raises:
        ConfigError: One of the two is missing or holds no such folder, or a folder in it has
            another kind of name.
    """
    subsets = [*_subsets_in(Path(train_data_dir), _TRAIN)]
    if reg_data_dir is not None:
        found = _subsets_in(Path(reg_data_dir), _REGULARISATION)
        subsets += [{**subset, "is_reg": True} for subset in found]
    return subsets


def _subsets_in(folder: Path, setting: str) -> list[dict[str, Any]]:
    fault = remote_fault(setting, folder)
    if fault:
        raise ConfigError(f"dataset.{fault}: give each folder as the image_dir of a subset.")
    if not presence.is_dir(folder):
        raise ConfigError(
            f"The folder {folder} of dataset.{setting} does not exist. Give the path of the folder "
            f"that holds folders named N_class, as in 10_sks dog."
        )
    subsets = [subset for name in _folders_in(folder) if (subset := _subset_of(folder, name))]
    if not subsets:
        raise ConfigError(
            f"{folder}, which is dataset.{setting}, holds no folder named N_class, as in 10_sks "
            f"dog, with 1 or more repeats. Images directly in it are not used: put them "
            f"into such a folder, or set dataset.image_dir to it."
        )
    return subsets


def _folders_in(folder: Path) -> Iterator[str]:
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise ConfigError(f"The folder {folder} cannot be read: {error.strerror}.") from error
    there = set(names)
    for name in names:
        images = name.removesuffix(_MASKS)
        is_of_masks = images != name and images in there  # written by `dataset mask`
        if not (is_of_masks or name.startswith(".")) and presence.is_dir(folder / name):
            yield name


def _subset_of(folder: Path, name: str) -> dict[str, Any] | None:
    """Return the subset of one folder; None if it has 0 repeats."""
    match = _NAME.fullmatch(name)
    if match is None:
        class_tokens = name.lstrip("-_. 0123456789") or "class"
        raise ConfigError(
            f"The folder {folder / name} has no number of repeats in front of its name; expected "
            f"N_class, as in 10_{class_tokens}. Rename it, or move it elsewhere if its images "
            "should not be used."
        )
    if (folder / name).is_symlink():
        raise ConfigError(
            f"{folder / name} is a link to a folder, which is not followed. Put the folder itself "
            f"there, or name it in a separate subset (image_dir, num_repeats, class_tokens)."
        )
    repeats, class_tokens = int(match[1]), (match[2] or "").strip()
    if repeats > _MOST_REPEATS:
        raise ConfigError(
            f"The folder {folder / name} asks for {repeats:,} repeats; expected up to "
            f"{_MOST_REPEATS:,}. If the number is a date, rename it: 10_{class_tokens or 'class'}."
        )
    if repeats == 0:
        return None
    subset: dict[str, Any] = {"image_dir": str(folder / name), "num_repeats": repeats}
    return {**subset, "class_tokens": class_tokens} if class_tokens else subset
