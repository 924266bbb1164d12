"""Translates the flags of commands with DreamBooth folders: `train_db.py` and `sdxl_train.py`.

Each rule takes the flags, sets the matching keys in the tree of settings, and returns notices for
the user.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from impasto.config.dreambooth import holds_dreambooth_folders, holds_files_of_ending
from impasto.errors import ConfigError

Tree = dict[str, Any]


def set_text_encoder_length(flags: Mapping[str, Any], tree: Tree) -> list[str]:
    """Set how long `train_db.py` trains the text encoder: always, until a step, or not at all."""
    steps = flags.get("stop_text_encoder_training")
    method = tree.setdefault("method", {})
    method["train_text_encoder"] = steps is None or steps > 0
    if steps is not None and steps > 0:
        method["text_encoder_until_step"] = steps
    return []


def set_dreambooth_folders(flags: Mapping[str, Any], tree: Tree) -> list[str]:
    """Use the folders named `N_class` in `--train_data_dir` and `--reg_data_dir` as subsets.

    A `--train_data_dir` without such folders is itself a folder of images.

    Raises:
        ConfigError: Regularisation images are given without training images, or a folder cannot be
            read.
    """
    train, regularisation = flags.get("train_data_dir"), flags.get("reg_data_dir")
    for name in ("dataset_config", "in_json"):
        if name in flags:
            told = f"--reg_data_dir: --{name} is given, so it is not used."
            return [told] if regularisation else []
    if regularisation and not train:
        raise ConfigError("--reg_data_dir needs --train_data_dir, which it is balanced against.")
    if regularisation or (train and holds_dreambooth_folders(Path(train))):
        dataset = tree["dataset"]
        dataset["train_data_dir"] = dataset.pop("image_dir")
        if regularisation:
            dataset["reg_data_dir"] = regularisation
    return []


def tell_of_tag_files(flags: Mapping[str, Any], tree: Tree) -> list[str]:
    """Return a notice if .txt captions are read without `--caption_extension`.

    sd-scripts then reads only .caption files; Impasto reads .txt files too.
    """
    if tree["dataset"].get("caption_extension") is not None:
        return []
    if (
        "train_data_dir" not in tree["dataset"]
    ):  # in sd-scripts only folders named `N_class` have images
        return []
    folders = [flags[name] for name in ("train_data_dir", "reg_data_dir") if flags.get(name)]
    if not any(holds_files_of_ending(Path(folder), ".txt") for folder in folders):
        return []
    return [
        "--caption_extension was not given: captions are read from .caption and .txt files; "
        "sd-scripts reads only .caption. To leave .txt out, give --caption_extension=.caption."
    ]


def set_masks(flags: Mapping[str, Any], tree: Tree) -> list[str]:
    """Set the folder of masks for the loss; not for regularisation images of `N_class` folders."""
    folder, is_masked = flags.get("conditioning_data_dir"), flags.get("masked_loss")
    if not folder and not is_masked:
        return []
    if not is_masked:
        return ["--conditioning_data_dir: it has no effect without --masked_loss."]
    if "dataset_config" in flags:
        found = [
            "--masked_loss: masks count where a subset of --dataset_config has "
            "conditioning_data_dir or mask_dir."
        ]
        if folder:
            found.append("--conditioning_data_dir: --dataset_config is given, so it is not used.")
        return found
    if not folder:
        return ["--masked_loss: there are no masks except those of --alpha_mask."]
    tree["dataset"]["mask_dir"] = folder
    return []
