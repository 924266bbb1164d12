"""Maps sd-scripts' flags to the settings that they decide, for comments and for resumed runs.

Flags that set one setting directly name it in `flags.py`; those with a rule in `translate.py` are
listed here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from impasto.errors import ConfigError
from impasto.sdscripts.flag import Script
from impasto.sdscripts.flags import flags_of

_OF_SETTINGS = r"(?:'\w+'|a list)"
"""Values that a setting accepts but a numeric flag does not: a word such as 'auto', or a list."""

_MODEL_KIND = ("model.family", "model.prediction_type")

BY_RULE: dict[str, tuple[str, ...]] = {
    "v2": _MODEL_KIND,
    "v_parameterization": _MODEL_KIND,
    "max_token_length": ("model.max_tokens",),
    "weighted_captions": ("model.caption_emphasis",),
    "dataset_config": ("dataset",),
    "train_data_dir": ("dataset",),
    "in_json": ("dataset",),
    "reg_data_dir": ("dataset",),
    "resolution": ("dataset.resolution",),
    "face_crop_aug_range": ("dataset.face_crop_aug_range",),
    "seed": ("seed",),
    "mixed_precision": ("training.mixed_precision",),
    "full_fp16": ("training.weight_dtype",),
    "full_bf16": ("training.weight_dtype",),
    "torch_compile": ("training.compile",),
    "conditioning_data_dir": ("dataset.mask_dir",),
    "masked_loss": ("dataset.mask_dir",),
    "block_lr": ("method.block_lrs",),
    "fused_backward_pass": ("training.optimizer_in_backward",),
    "fused_optimizer_groups": ("training.optimizer_in_backward",),
    "optimizer_type": ("optimizer.kind",),
    "use_8bit_adam": ("optimizer.kind",),
    "use_lion_optimizer": ("optimizer.kind",),
    "optimizer_args": (
        "optimizer.betas", "optimizer.eps", "optimizer.weight_decay", "optimizer.arguments",
    ),
    "lr_scheduler": ("schedule.kind",),
    "lr_scheduler_args": ("schedule.rules", "schedule.min_lr_ratio"),
    "lr_warmup_steps": ("schedule.warmup_steps",),
    "lr_decay_steps": ("schedule.decay_steps",),
    "lr_scheduler_num_cycles": ("schedule.cycles",),
    "lr_scheduler_power": ("schedule.power",),
    "lr_scheduler_timescale": ("schedule.timescale",),
    "lr_scheduler_min_lr_ratio": ("schedule.min_lr_ratio",),
    "output_dir": ("saving.model_dir",),
    "output_name": ("saving.name",),
    "save_model_as": ("saving.format",),
    "use_safetensors": ("saving.format",),
    "save_precision": ("saving.export_dtype", "saving.text_encoder_dtype", "saving.vae_dtype"),
    "save_n_epoch_ratio": ("saving.model_every_epochs",),
    "save_last_n_epochs": ("saving.keep_epoch_models",),
    "save_last_n_steps": ("saving.keep_step_models",),
    "metadata_title": ("saving.metadata.title",),
    "sample_at_first": ("previews.at_first",),
    "sample_sampler": ("previews.sampler",),
    "logging_dir": ("logging.trackers",),
    "log_with": ("logging.trackers",),
    "log_tracker_name": ("logging.wandb_project",),
    "wandb_run_name": ("logging.wandb_name",),
    "prior_loss_weight": ("dataset.prior_loss_weight",),
    "stop_text_encoder_training": ("method.train_text_encoder", "method.text_encoder_until_step"),
}  # fmt: skip


def settings_of(script: Script, flag: str) -> tuple[str, ...]:
    """Return the paths of the settings or section that a flag decides; empty without effect."""
    row = flags_of(script)[flag]
    if row.notice:
        return ()
    return (row.to,) if row.to else BY_RULE.get(flag, ())


def settings_decided_by(script: Script, flags: Iterable[str]) -> set[str]:
    """Return the paths of all settings that the given flags decide."""
    return {path for flag in flags for path in settings_of(script, flag)}


def flags_by_setting(script: Script, flags: Mapping[str, Any]) -> dict[str, str]:
    """Return path of a setting -> the flag that decides it; given flags come before others."""
    known = flags_of(script)
    ruled = [name for name in BY_RULE if name in known]
    by_rule = {path: name for name in ruled for path in settings_of(script, name) if "." in path}
    by_table = {flag.to: flag.name for flag in known.values() if flag.to}
    given = {path: name for name in flags for path in settings_of(script, name)}
    return by_rule | by_table | given


def told_in_flags(script: Script, flags: Mapping[str, Any], error: ConfigError) -> ConfigError:
    """Return an error about settings with the names of flags in place of those of settings.

    Settings that no flag decides keep their names.
    """
    names = {path: f"--{name}" for path, name in flags_by_setting(script, flags).items()}
    message = str(error)
    for section, text in error.faults.items():
        keys = {path.partition(".")[2]: name for path, name in names.items()
                if path.startswith(f"{section}.")}  # fmt: skip
        reason = text.removeprefix(f"{section}: ")
        for key, name in keys.items():
            word = "the kind" if key == "kind" else key
            at = "" if "_" in word or " " in word else "^"  # elsewhere it is an ordinary word
            reason = re.sub(rf"{at}(?<![\w.-]){re.escape(word)}(?!\w)", name, reason)
        if keys:
            message = message.replace(text, reason)
    for path, name in names.items():
        if "." in path:
            message = re.sub(rf"(?<![\w.]){re.escape(path)}(?![\w\[]|\.\w)", name, message)
    message = re.sub(rf"(--\w+: expected [^(]+), or {_OF_SETTINGS}(?= \(found)", r"\1", message)
    return ConfigError(message, error.faults)
