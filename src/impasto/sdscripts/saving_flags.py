"""Translates sd-scripts' flags of saving: where, in which format and how often."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from impasto import presence
from impasto.checkpoints.hub import FILE_ENDINGS
from impasto.config.names import file_name_problem
from impasto.errors import ConfigError

_FORMATS = {"ckpt": "ckpt", "safetensors": "safetensors", "diffusers": "diffusers",
            "diffusers_safetensors": "diffusers"}  # fmt: skip
_PRECISIONS = {"float": "fp32", "fp16": "fp16", "bf16": "bf16"}


def set_saving(flags: Mapping[str, Any], tree: dict[str, Any]) -> list[str]:
    """Set names, formats and intervals of saved models in the tree; return notices for the user.

    Raises:
        ConfigError: `--output_name` is not a file name, or the number of epochs is needed and
            unknown.
    """
    saving = tree.setdefault("saving", {})
    folder = Path(flags["output_dir"])
    name = flags.get("output_name") or "last"
    fault = file_name_problem(name)
    if fault is not None:
        raise ConfigError(
            f"--output_name is {name[:60]!r}, which {fault}. Give folders in --output_dir."
        )
    source = str(flags["pretrained_model_name_or_path"])
    form = _FORMATS[flags.get("save_model_as") or _form_of(source)]
    if form == "ckpt" and flags.get("use_safetensors"):  # a folder has safetensors in any case
        form = "safetensors"
    saving |= {"name": name, "model_dir": str(folder), "format": form}
    precision = flags.get("save_precision")
    saving["export_dtype"] = _PRECISIONS[precision or "float"]
    if precision:
        saving |= dict.fromkeys(("text_encoder_dtype", "vae_dtype"), _PRECISIONS[precision])
    tree["output_dir"] = str(presence.free_path(folder / f"{name}-run"))
    title = flags.get("metadata_title")
    if title:
        saving.setdefault("metadata", {})["title"] = title
    return _set_rhythms(flags, saving)


def _set_rhythms(flags: Mapping[str, Any], saving: dict[str, Any]) -> list[str]:
    """Set how often models are saved and how many are kept, separately for steps and epochs."""
    ratio = flags.get("save_n_epoch_ratio") or 0
    if ratio > 0:
        saving["model_every_epochs"] = _epochs_of_ratio(flags, ratio)
    notices = []
    for kind in ("step", "epoch"):
        last, every = flags.get(f"save_last_n_{kind}s"), saving.get(f"model_every_{kind}s")
        if last is None:
            continue
        if every is None or every < 1:
            notices.append(f"--save_last_n_{kind}s: nothing is saved every n {kind}s.")
        else:  # a range of steps, but a number of models for epochs
            saving[f"keep_{kind}_models"] = last // every + 1 if kind == "step" else last
    return notices


def _epochs_of_ratio(flags: Mapping[str, Any], ratio: int) -> int:
    """Return the epochs between models so that about `ratio` models are saved.

    Raises:
        ConfigError: The number of epochs is not given.
    """
    if "max_train_epochs" not in flags:
        raise ConfigError(
            "--save_n_epoch_ratio needs --max_train_epochs: the number of epochs in "
            "--max_train_steps is known only when the images have been read. Give "
            "--save_every_n_epochs instead."
        )
    return max(1, int(flags["max_train_epochs"]) // ratio)


def _form_of(source: str) -> str:
    """Return the default format to save a model in: that of the base model."""
    ending = Path(source).suffix.lower()
    if ending in (".safetensors", ".sft"):
        return "safetensors"
    return "ckpt" if ending in FILE_ENDINGS else "diffusers"
