"""Folders of folders named `N_class`, DreamBooth-style, as the subsets that they stand for.

`10_sks dog` is a subset whose images come ten times in an epoch and are called `sks dog` where they
have no caption file; folders in it are not looked into, unless `recursive` says so:
kohya-ss/sd-scripts, `library/config_util.py`, generate_dreambooth_subsets_config_by_subdirs. There
a folder of another name is skipped; here it is refused, since its images would be missing.
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
    """The content of `[dataset]`, with subsets in the place of the folders that it names.

    Args:
        values: May have `train_data_dir`, and `reg_data_dir` beside it.

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
            "dataset.reg_data_dir is given without dataset.train_data_dir: regularisation images "
            "come as often as those that are trained on. Give both."
        )
    twice = [name for name in _OTHERS if content.get(name) is not None]
    if twice:
        raise ConfigError(
            f"dataset.train_data_dir and dataset.{twice[0]} contradict each other: both say where "
            f"the images are. Take one of them out."
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
    """Whether a folder has one in it that is named `N_class`.

    Raises:
        ConfigError: It cannot be read.
    """
    return presence.is_dir(folder) and any(_NAME.fullmatch(name) for name in _folders_in(folder))


def holds_files_of_ending(folder: Path, ending: str) -> bool:
    """Whether a file of some ending lies in a folder `N_class` of a folder.

    Folders that cannot be read hold none: whoever reads their images says what is wrong.
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
    """The subsets that the folders in two folders stand for, in the order of their names.

    Hidden folders are skipped, and those with 0 repeats.

    Args:
        train_data_dir: Has the folders of images that are trained on.
        reg_data_dir: Has those of regularisation images; None means that there are none.

    Raises:
        ConfigError: One of the two is missing or holds no such folder, or a folder in it has
            another name.
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
            f"The folder {folder} of dataset.{setting} is not there. Give the path of the folder "
            f"that holds folders named N_class, as in 10_sks dog."
        )
    subsets = [subset for name in _folders_in(folder) if (subset := _subset_of(folder, name))]
    if not subsets:
        raise ConfigError(
            f"{folder}, which is dataset.{setting}, holds no folder named N_class, as in 10_sks "
            f"dog, with 1 or more repeats. Images that lie in it directly are not used: put them "
            f"into such a folder, or give it as dataset.image_dir."
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
        is_of_masks = images != name and images in there  # as `dataset mask` writes
        if not (is_of_masks or name.startswith(".")) and presence.is_dir(folder / name):
            yield name


def _subset_of(folder: Path, name: str) -> dict[str, Any] | None:
    """The subset of one folder; None where it asks for 0 repeats."""
    match = _NAME.fullmatch(name)
    if match is None:
        class_tokens = name.lstrip("-_. 0123456789") or "class"
        raise ConfigError(
            f"The folder {folder / name} has no number of repeats in front of its name; expected "
            f"N_class, as in 10_{class_tokens}. Rename it, or move it elsewhere if its images are "
            f"not meant."
        )
    if (folder / name).is_symlink():
        raise ConfigError(
            f"{folder / name} is a link to a folder, which is not followed. Put the folder itself "
            f"there, or name it in a subset of its own (image_dir, num_repeats, class_tokens)."
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
