"""What flags of sd-scripts' `sdxl_train.py` become that `fine_tune.py` does not have.

Each rule takes the flags, puts what they mean into the tree of settings, and returns what a person
is told.
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

STEPS_OF_BUCKETS = 32  # pixels; a multiple of it is between sides of buckets
CACHING = ("cache_text_encoder_outputs", "cache_text_encoder_outputs_to_disk")
FUSED = ("fused_backward_pass", "fused_optimizer_groups")
_CHANGES_CAPTIONS = (
    "shuffle_caption", "caption_dropout_rate", "caption_tag_dropout_rate", "token_warmup_step",
)  # fmt: skip


def set_text_encoder_rates(flags: Mapping[str, Any], tree: Tree) -> list[str]:
    """Each encoder learns at its own rate, or not at all at 0."""
    method = tree.setdefault("method", {})
    rates = method.get("text_encoder_lrs", {})
    given = [name for name in ("learning_rate_te1", "learning_rate_te2") if name in flags]
    if not flags.get("train_text_encoder"):
        method.pop("text_encoder_lrs", None)
        return [f"--{name}: it has no effect without --train_text_encoder." for name in given]
    if len(given) == 2 and not any(rates.values()):
        del method["text_encoder_lrs"]
        method["train_text_encoder"] = False  # said, so that a resumed run sees the change
        return ["--train_text_encoder: both encoders have a rate of 0, so that none is trained."]
    return []


def set_block_rates(flags: Mapping[str, Any], tree: Tree) -> list[str]:
    """Each of 23 blocks learns at its own rate, or not at all at 0.

    Raises:
        ConfigError: There are more or fewer numbers than blocks, or the U-Net has rates of 0 only.
    """
    if flags.get("learning_rate") == 0:
        raise ConfigError(
            "--learning_rate is 0, with which sdxl_train.py trains the text encoders alone. Here "
            "some of the U-Net always learns: give --learning_rate above 0, and --block_lr to "
            "leave blocks as they are."
        )
    if "block_lr" not in flags:
        return []
    rates = read_numbers("block_lr", flags, len(BLOCKS))
    if not any(rates):
        raise ConfigError(
            "--block_lr is 0 for every block, with which sdxl_train.py trains the text encoders "
            "alone or nothing. Here some of the U-Net always learns: give a block a rate above 0."
        )
    tree.setdefault("method", {})["block_lrs"] = {
        name: rate for names, rate in zip(BLOCKS, rates, strict=True) for name in names
    }
    return []


def set_steps_in_backward(flags: Mapping[str, Any], tree: Tree) -> list[str]:
    """Change weights within the backward pass, by the gradient's norm of the step before.

    Raises:
        ConfigError: Gradients are accumulated too, with `--fused_backward_pass`.
    """
    asked = [name for name in FUSED if flags.get(name)]
    if not asked:
        return []
    steps = flags.get("gradient_accumulation_steps", 1)
    if steps > 1 and asked[0] == FUSED[0]:
        raise ConfigError(
            f"--{asked[0]} uses each gradient up at once, and --gradient_accumulation_steps "
            f"{steps} adds gradients up. Take one of the two out."
        )
    if steps > 1:
        return [
            f"--{asked[0]}: weights change after all {steps} of --gradient_accumulation_steps, so "
            f"that it has no effect."
        ]
    is_limited = flags.get("max_grad_norm", 1.0) > 0
    by_last = is_limited and flags.get("mixed_precision", "no") != "fp16"  # which may overflow
    tree["training"]["optimizer_in_backward"] = "last_norm" if by_last else "exact"
    reasons = {
        "fused_backward_pass": "each weight changes as soon as its gradient is there",
        "fused_optimizer_groups": "as --fused_backward_pass, for which weights need no groups",
    }
    told = [f"--{name}: {reasons[name]}" for name in asked]
    if by_last:
        told[0] += "; --max_grad_norm limits the whole gradient, by its norm in the step before"
    return [f"{line}." for line in told]


def set_text_cache(flags: Mapping[str, Any], tree: Tree) -> list[str]:
    """What text encoders answer is kept on disk, beside the latents.

    Raises:
        ConfigError: The encoders are trained, or words have weights.
    """
    asked = [name for name in CACHING if flags.get(name)]
    if asked and flags.get("weighted_captions"):
        raise ConfigError(
            f"--{asked[0]} and --weighted_captions do not go together in sdxl_train.py. Take one "
            f"of the two out."
        )
    if asked and tree.get("method", {}).get("train_text_encoder"):
        raise ConfigError(
            f"--{asked[0]} keeps what the text encoders say of each caption, and "
            f"--train_text_encoder changes that in each step. Take one of the two out."
        )
    if asked[:1] == [CACHING[0]]:
        return [f"--{CACHING[0]}: they are kept on disk, beside the latents."]
    return []


def set_export_precision(flags: Mapping[str, Any], tree: Tree) -> list[str]:
    """Weights that are kept in 16 bits are saved so, unless `--save_precision` is given."""
    full = next((name for name in ("fp16", "bf16") if flags.get(f"full_{name}")), None)
    if full is None or flags.get("save_precision"):
        return []
    tree["saving"]["export_dtype"] = full
    return [f"--full_{full}: what is trained is saved in {full}, as --save_precision is not given."]


def require_fixed_captions(flags: Mapping[str, Any], config: RunConfig) -> None:
    """Make sure that captions are always the same where the encoders' outputs are to be kept.

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
                f"--{asked} keeps what the text encoders say of each caption, and {changing} "
                f"changes the captions of {subset.metadata_file or subset.image_dir} as they are "
                f"shown. Take one of the two out."
            )


def require_steps_of_buckets(flags: Mapping[str, Any], config: RunConfig) -> None:
    """Make sure that sides of buckets are as far apart as the command takes.

    Raises:
        ConfigError: A dataset has steps that are no multiple of 32.
    """
    if not {"bucket_reso_steps", "dataset_config"} & flags.keys():
        return
    for entry in config.dataset.entries:
        steps = entry.bucket_reso_steps
        if entry.enable_bucket and steps % STEPS_OF_BUCKETS:
            raise ConfigError(
                f"bucket_reso_steps is {steps}; sdxl_train.py takes multiples of "
                f"{STEPS_OF_BUCKETS}. Give {STEPS_OF_BUCKETS} or 64, or train with `impasto train`."
            )


RULES: tuple[Callable[[Mapping[str, Any], Tree], list[str]], ...] = (
    set_text_encoder_rates,
    set_block_rates,
    set_steps_in_backward,
    set_text_cache,
    set_export_precision,
)
