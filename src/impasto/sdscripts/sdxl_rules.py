"""Translates the flags of sd-scripts' `sdxl_train.py` that `fine_tune.py` does not have.

Each rule takes the flags, sets the matching keys in the tree of settings, and returns notices for
the user.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from impasto.config.run import RunConfig
from impasto.errors import ConfigError
from impasto.sdscripts.values import read_numbers

Tree = dict[str, Any]

BLOCKS: tuple[tuple[str, ...], ...] = (
    ("time_embedding", "add_embedding"),
    ("conv_in",),
    ("down_blocks.0.resnets.0",),
    ("down_blocks.0.resnets.1",),
    ("down_blocks.0.downsamplers.0",),
    ("down_blocks.1.resnets.0", "down_blocks.1.attentions.0"),
    ("down_blocks.1.resnets.1", "down_blocks.1.attentions.1"),
    ("down_blocks.1.downsamplers.0",),
    ("down_blocks.2.resnets.0", "down_blocks.2.attentions.0"),
    ("down_blocks.2.resnets.1", "down_blocks.2.attentions.1"),
    ("mid_block.resnets.0",),
    ("mid_block.attentions.0",),
    ("mid_block.resnets.1",),
    ("up_blocks.0.resnets.0", "up_blocks.0.attentions.0"),
    ("up_blocks.0.resnets.1", "up_blocks.0.attentions.1"),
    ("up_blocks.0.resnets.2", "up_blocks.0.attentions.2", "up_blocks.0.upsamplers.0"),
    ("up_blocks.1.resnets.0", "up_blocks.1.attentions.0"),
    ("up_blocks.1.resnets.1", "up_blocks.1.attentions.1"),
    ("up_blocks.1.resnets.2", "up_blocks.1.attentions.2", "up_blocks.1.upsamplers.0"),
    ("up_blocks.2.resnets.0",),
    ("up_blocks.2.resnets.1",),
    ("up_blocks.2.resnets.2",),
    ("conv_norm_out", "conv_out"),
)
"""The layers of SDXL's U-Net that each value of `--block_lr` is for, by diffusers' names.

0 is the time and label embedding, 1 to 9 are the input blocks of single files, 10 to 12 the middle
block's, 13 to 21 the output blocks, 22 is the output (sd-scripts, `sdxl_train.py`).
"""

STEPS_OF_BUCKETS = 32  # pixels; bucket sides differ by multiples of this
CACHING = ("cache_text_encoder_outputs", "cache_text_encoder_outputs_to_disk")
FUSED = ("fused_backward_pass", "fused_optimizer_groups")
_CHANGES_CAPTIONS = (
    "shuffle_caption", "caption_dropout_rate", "caption_tag_dropout_rate", "token_warmup_step",
)  # fmt: skip


def set_text_encoder_rates(flags: Mapping[str, Any], tree: Tree) -> list[str]:
    """Set the learning rate of each text encoder; an encoder with a rate of 0 is not trained."""
    method = tree.setdefault("method", {})
    rates = method.get("text_encoder_lrs", {})
    given = [name for name in ("learning_rate_te1", "learning_rate_te2") if name in flags]
    if not flags.get("train_text_encoder"):
        method.pop("text_encoder_lrs", None)
        return [f"--{name}: it has no effect without --train_text_encoder." for name in given]
    if len(given) == 2 and not any(rates.values()):
        del method["text_encoder_lrs"]
        method["train_text_encoder"] = False  # explicit, so that a resumed run sees the change
        return ["--train_text_encoder: both encoders have a rate of 0, so none is trained."]
    return []


def set_block_rates(flags: Mapping[str, Any], tree: Tree) -> list[str]:
    """Set the learning rate of each of the 23 blocks; a block with a rate of 0 is not trained.

    Raises:
        ConfigError: The number of rates differs from that of blocks, or all rates are 0.
    """
    if flags.get("learning_rate") == 0:
        raise ConfigError(
            "--learning_rate is 0, with which sdxl_train.py trains only the text encoders. Here "
            "some of the U-Net is always trained: give --learning_rate above 0, and --block_lr to "
            "freeze blocks."
        )
    if "block_lr" not in flags:
        return []
    rates = read_numbers("block_lr", flags, len(BLOCKS))
    if not any(rates):
        raise ConfigError(
            "--block_lr is 0 for every block, with which sdxl_train.py trains only the text "
            "encoders, or nothing. Here some of the U-Net is always trained: give a block a rate "
            "above 0."
        )
    tree.setdefault("method", {})["block_lrs"] = {
        name: rate for names, rate in zip(BLOCKS, rates, strict=True) for name in names
    }
    return []


def set_steps_in_backward(flags: Mapping[str, Any], tree: Tree) -> list[str]:
    """Set the optimizer to run in the backward pass, clipping by the norm of the previous step.

    Raises:
        ConfigError: `--fused_backward_pass` is given together with gradient accumulation.
    """
    asked = [name for name in FUSED if flags.get(name)]
    if not asked:
        return []
    steps = flags.get("gradient_accumulation_steps", 1)
    if steps > 1 and asked[0] == FUSED[0]:
        raise ConfigError(
            f"--{asked[0]} frees each gradient at once, but --gradient_accumulation_steps {steps} "
            f"adds gradients up. Remove one of the two."
        )
    if steps > 1:
        return [
            f"--{asked[0]}: weights change after all {steps} of --gradient_accumulation_steps, so "
            f"it has no effect."
        ]
    is_limited = flags.get("max_grad_norm", 1.0) > 0
    by_last = is_limited and flags.get("mixed_precision", "no") != "fp16"  # which may overflow
    tree["training"]["optimizer_in_backward"] = "last_norm" if by_last else "exact"
    reasons = {
        "fused_backward_pass": "each weight changes as soon as its gradient is computed",
        "fused_optimizer_groups": "as --fused_backward_pass, for which weights need no groups",
    }
    told = [f"--{name}: {reasons[name]}" for name in asked]
    if by_last:
        told[0] += "; --max_grad_norm limits the whole gradient, by its norm in the step before"
    return [f"{line}." for line in told]


def set_text_cache(flags: Mapping[str, Any], tree: Tree) -> list[str]:
    """Check that text encoder outputs can be cached on disk, and return notices.

    Raises:
        ConfigError: The text encoders are trained, or captions are weighted.
    """
    asked = [name for name in CACHING if flags.get(name)]
    if asked and flags.get("weighted_captions"):
        raise ConfigError(
            f"--{asked[0]} and --weighted_captions do not work together in sdxl_train.py. Remove "
            f"one of the two."
        )
    if asked and tree.get("method", {}).get("train_text_encoder"):
        raise ConfigError(
            f"--{asked[0]} caches the text encoders' outputs for each caption, but "
            f"--train_text_encoder changes these outputs in each step. Remove one of the two."
        )
    if asked[:1] == [CACHING[0]]:
        return [f"--{CACHING[0]}: they are cached on disk, beside the latents."]
    return []


def set_export_precision(flags: Mapping[str, Any], tree: Tree) -> list[str]:
    """Save models in the 16 bits of trained weights, unless `--save_precision` is given."""
    full = next((name for name in ("fp16", "bf16") if flags.get(f"full_{name}")), None)
    if full is None or flags.get("save_precision"):
        return []
    tree["saving"]["export_dtype"] = full
    return [f"--full_{full}: the model is saved in {full}, as --save_precision is not given."]


def require_fixed_captions(flags: Mapping[str, Any], config: RunConfig) -> None:
    """Make sure that captions never change if text encoder outputs are cached.

    Raises:
        ConfigError: A dataset changes its captions.
    """
    asked = next((name for name in CACHING if flags.get(name)), None)
    if asked is None:
        return
    subsets = [s for entry in config.dataset.entries for s in entry.subsets if s.num_repeats]
    for subset in subsets:
        changing = next((name for name in _CHANGES_CAPTIONS if getattr(subset, name)), None)
        if changing is not None:
            raise ConfigError(
                f"--{asked} caches the text encoders' outputs for each caption, but {changing} "
                f"changes the captions of {subset.metadata_file or subset.image_dir} during "
                f"training. Remove one of the two."
            )


def require_steps_of_buckets(flags: Mapping[str, Any], config: RunConfig) -> None:
    """Make sure that the step between bucket sides is one that the command accepts.

    Raises:
        ConfigError: A dataset has a step that is not a multiple of 32.
    """
    if not {"bucket_reso_steps", "dataset_config"} & flags.keys():
        return
    for entry in config.dataset.entries:
        steps = entry.bucket_reso_steps
        if entry.enable_bucket and steps % STEPS_OF_BUCKETS:
            raise ConfigError(
                f"bucket_reso_steps is {steps}; sdxl_train.py accepts multiples of "
                f"{STEPS_OF_BUCKETS}. Give {STEPS_OF_BUCKETS} or 64, or train with `impasto train`."
            )


RULES: tuple[Callable[[Mapping[str, Any], Tree], list[str]], ...] = (
    set_text_encoder_rates,
    set_block_rates,
    set_steps_in_backward,
    set_text_cache,
    set_export_precision,
)
