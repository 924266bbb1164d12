"""Chooses the parallelism of a run's processes, by accelerate's configuration and the settings."""

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
    """Return the facts about a run on this machine that compatibility rules use beside settings.

    Args:
        config: The settings of the run.
        processes: Number of processes of the run.
        total_steps: Number of optimizer steps; None if they have not been counted.
        device: The device that it computes on; None means the first GPU, or else the CPU.
        identity: Family and prediction type of the base model; None if it has not been opened.
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
    """Return the number of processes that a launcher has started; 1 without a launcher.

    Like accelerate, it reads `WORLD_SIZE` if `LOCAL_RANK` is set too.
    """
    number = os.environ.get("WORLD_SIZE", "")
    return int(number) if "LOCAL_RANK" in os.environ and number.isdigit() else 1


def require_strategy(config: RunConfig, processes: int) -> None:
    """Check, before processes start, that accelerate's parallelism is supported with the settings.

    Raises:
        ConfigError: Accelerate is configured for unsupported parallelism, or a setting is
            incompatible with it.
        MissingDependencyError: Accelerate is configured for DeepSpeed, which is not installed.
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
    """Build the parallel strategy that accelerate is configured for.

    With a single process, and by default, that is data parallelism.

    Raises:
        ConfigError: A setting is incompatible with accelerate's configuration.
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
