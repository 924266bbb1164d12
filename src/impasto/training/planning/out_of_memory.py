"""What to say when memory runs out: what was being done, and the settings that help most."""

from __future__ import annotations

import torch

from impasto.config.compatibility import goes_together
from impasto.config.run import RunConfig
from impasto.errors import OutOfMemoryError
from impasto.training.devices import default_device
from impasto.training.planning.changes import Changes, settings_text, with_changes
from impasto.training.planning.memory_facts import changes_captions, takes_8bit_adamw
from impasto.training.precision import native_precision
from impasto.training.processes import facts_of, planned_processes

ADVICE = 3


def out_of_memory(
    config: RunConfig, doing: str, then: str, device: torch.device
) -> OutOfMemoryError:
    """Build the error that explains memory running out, with advice.

    Args:
        config: The settings.
        doing: What was being done, as in `"while training on ..."`.
        then: What became of the run, in a sentence.
        device: Where.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        start = f"VRAM ({total / 2**30:.1f} GiB, {free / 2**30:.1f} free) ran out"
    else:
        start = "RAM ran out"
    ways = advice(config, doing)[:ADVICE]
    return OutOfMemoryError(
        f"{start} while {doing}. {then} What would help most: {'; '.join(ways)}."
    )


def advice(config: RunConfig, doing: str) -> list[str]:
    """Settings that take less memory, those first that help most at what was being done."""
    return [*_on_other_work(config, doing), *_on_training(config)]


def _on_other_work(config: RunConfig, doing: str) -> list[str]:
    found = []
    if "encoding" in doing and config.dataset.vae_batch_size > 1:
        found.append(f"dataset.vae_batch_size = 1 (it is {config.dataset.vae_batch_size})")
    if "preview" in doing:
        sides = f"{config.previews.width}x{config.previews.height}"
        found.append(f"smaller previews.width and previews.height ({sides} now)")
    return found


def _on_training(config: RunConfig) -> list[str]:
    """In the order of what they save of a full fine-tuning of SD 1.x at 512 pixels."""
    facts = facts_of(config, planned_processes())
    found = [
        f"{settings_text(changes)} ({why})"
        for applies, changes, why in (*_ways_to_compute_less(config), *_ways_to_keep_less(config))
        if applies and goes_together(with_changes(config, changes), facts)
    ]
    if config.trains_text_encoder:
        found.append("method.train_text_encoder = false")
    return [*found, "a smaller dataset.resolution"]


_Way = tuple[bool, Changes, str]
"""Whether a change would help, the change, and why it does."""


def _ways_to_compute_less(config: RunConfig) -> list[_Way]:
    training = config.training
    largest = max(config.batch_sizes.values())
    half = max(1, largest // 2)
    accumulated = training.gradient_accumulation_steps * -(-largest // half)
    return [
        (
            not training.gradient_checkpointing,
            {"training": {"gradient_checkpointing": True}},
            "activations are computed again instead of kept",
        ),
        (
            largest > 1,
            {"training": {"batch_size": half, "gradient_accumulation_steps": accumulated}},
            "the same training, in smaller pieces",
        ),
        (
            largest > 1 and training.optimizer_in_backward != "off",
            {"training": {"batch_size": half}},
            "fewer images a step",
        ),
    ]


def _ways_to_keep_less(config: RunConfig) -> list[_Way]:
    training, on_gpu = config.training, default_device().type == "cuda"
    return [
        (
            training.cuda_graphs == "step",
            {"training": {"cuda_graphs": "off"}},
            "no second set of activations for what is recorded",
        ),
        (
            takes_8bit_adamw(config),
            {"optimizer": {"kind": "adamw8bit"}},
            "a quarter of the optimizer's memory",
        ),
        (
            training.weight_dtype == "fp32" and native_precision().kind == "bf16",
            {"training": {"mixed_precision": "bf16", "weight_dtype": "bf16"}},
            "half the memory for weights and gradients",
        ),
        (
            on_gpu and not training.offload_optimizer,
            {"training": {"offload_optimizer": True}},
            "the optimizer's state waits in RAM",
        ),
        (
            on_gpu and not training.stream_weights,
            {"training": {"stream_weights": True}},
            "the U-Net's weights wait in RAM",
        ),
        (
            training.weight_copies,
            {"training": {"weight_copies": False}},
            "2 bytes a weight less",
        ),
        (
            training.averages > 0 and not training.ema_on_cpu and on_gpu,
            {"training": {"ema_on_cpu": True}},
            "the average is kept in RAM",
        ),
        (
            not training.cache_text_to_disk and not changes_captions(config),
            {"training": {"cache_text_to_disk": True}},
            "the text encoder leaves the device",
        ),
    ]
