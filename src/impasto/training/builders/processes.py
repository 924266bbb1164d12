"""Chooses how the processes of a run hold what they train: by accelerate and the settings."""

from __future__ import annotations

import os
from typing import Any

import torch
from accelerate import Accelerator

from impasto.config.cases import Facts
from impasto.config.run import RunConfig
from impasto.diffusion.prediction import VELOCITY
from impasto.models.reading.identity import Identity
from impasto.training.compute.precision import computed_kind
from impasto.training.devices import (
    default_device,
    is_configured_for,
    is_on_cpu,
    require_parallelism,
)
from impasto.training.parallel.accelerate_config import configured_sharding, reshard_after_forward
from impasto.training.parallel.strategy import DataParallelStrategy, ParallelStrategy


def facts_of(
    config: RunConfig,
    processes: int,
    total_steps: int | None = None,
    device: torch.device | None = None,
    identity: Identity | None = None,
) -> Facts:
    """What is known of a run on this machine beside its settings.

    Args:
        config: The settings.
        processes: How many processes share the run.
        total_steps: Its optimizer steps, if they have been counted.
        device: Where it computes; the first GPU or else the CPU, unless another is given.
        identity: What its base model is, if that was opened.
    """
    return Facts(
        device=(device or default_device()).type,
        processes=processes,
        sharding=configured_sharding(),
        precision=computed_kind(config),
        total_steps=total_steps,
        predicts_velocity=None if identity is None else identity.prediction is VELOCITY,
        family="" if identity is None else identity.family.name,
        takes_clip_skip=None if identity is None else identity.family.takes_clip_skip,
    )


def planned_processes() -> int:
    """How many processes a launcher has started this one among; 1 without a launcher.

    accelerate goes by `WORLD_SIZE` where `LOCAL_RANK` is there too.
    """
    number = os.environ.get("WORLD_SIZE", "")
    return int(number) if "LOCAL_RANK" in os.environ and number.isdigit() else 1


def require_strategy(config: RunConfig, processes: int) -> None:
    """Make sure that processes can hold a model as accelerate is configured, before any begins.

    Raises:
        ConfigError: As `build_strategy`, or accelerate is configured for what is not offered.
        MissingDependencyError: It is configured for DeepSpeed, which is not installed.
    """
    require_parallelism()
    if processes == 1:
        return
    if is_configured_for("FSDP"):
        reshard_after_forward()
    elif is_configured_for("DEEPSPEED"):
        from accelerate.utils import DeepSpeedPlugin

        _deepspeed_settings(config, None if is_on_cpu() else DeepSpeedPlugin())


def _deepspeed_settings(config: RunConfig, plugin: Any) -> dict[str, Any]:
    from impasto.training.parallel.deepspeed import deepspeed_config

    training = config.training
    return deepspeed_config(
        plugin,
        max_grad_norm=training.max_grad_norm,
        accumulation=training.gradient_accumulation_steps,
    )


def build_strategy(config: RunConfig, accelerator: Accelerator) -> ParallelStrategy:
    """How the processes of this run hold what they train.

    Raises:
        ConfigError: A setting does not go with what accelerate is configured for.
    """
    if accelerator.num_processes == 1:
        return DataParallelStrategy(accelerator)
    if is_configured_for("FSDP"):
        from impasto.training.parallel.fsdp import FsdpStrategy

        return FsdpStrategy(accelerator, reshard_after_forward=reshard_after_forward())
    if is_configured_for("DEEPSPEED"):
        from impasto.training.parallel.deepspeed import DeepSpeedStrategy

        settings = _deepspeed_settings(config, accelerator.state.deepspeed_plugin)
        return DeepSpeedStrategy(accelerator, settings)
    return DataParallelStrategy(accelerator)
