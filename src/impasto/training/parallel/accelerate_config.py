"""Reads and checks accelerate's configuration for sharding a model.

`accelerate config` offers FSDP and DeepSpeed; `accelerate launch` passes the answers on in the
environment, and accelerate's plugins read them.
"""

from __future__ import annotations

import os
import warnings
from typing import Any, Literal

from impasto.errors import ConfigError
from impasto.training.devices import is_configured_for
from impasto.training.parallel.shards import Sharding

_STRATEGIES = {"FULL_SHARD": True, "SHARD_GRAD_OP": False}


def configured_sharding() -> Literal["", "FSDP", "DeepSpeed"]:
    """Return how accelerate is configured to shard models; an empty string if it is not."""
    if is_configured_for("FSDP"):
        return "FSDP"
    return "DeepSpeed" if is_configured_for("DEEPSPEED") else ""


def read_sharding(processes: int) -> Sharding:
    """Return by how much each part of a model will be sharded, by accelerate's configuration.

    Args:
        processes: The number of processes of the run.
    """
    if is_configured_for("FSDP"):
        return Sharding(processes, processes, processes)
    if is_configured_for("DEEPSPEED"):
        stage = int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") or 2)
        gradients = processes if stage > 1 else 1
        return Sharding(1, gradients, processes, has_master_weights=True)
    return Sharding()


def reshard_after_forward() -> bool:
    """Return whether FSDP reshards blocks after their forward pass, by accelerate's settings.

    Raises:
        ConfigError: accelerate's settings request a feature of FSDP that Impasto does not support.
    """
    from accelerate.utils import FullyShardedDataParallelPlugin

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its first version is deprecated
        plugin: Any = FullyShardedDataParallelPlugin()
    if _offloads(plugin.cpu_offload):
        raise ConfigError(
            "accelerate's fsdp_offload_params keeps weights in RAM, which is not "
            "supported. Set it to false; training.gradient_checkpointing saves VRAM."
        )
    if plugin.activation_checkpointing:
        raise ConfigError(
            "accelerate's fsdp_activation_checkpointing is not supported. Set it to false, and "
            "training.gradient_checkpointing, which does the same, to true."
        )
    if plugin.fsdp_version == 2:
        return bool(plugin.reshard_after_forward)
    strategy = plugin.sharding_strategy.name
    if strategy not in _STRATEGIES:
        raise ConfigError(
            f"accelerate's fsdp_sharding_strategy is {strategy}; expected "
            f"{' or '.join(_STRATEGIES)}. To have the whole model in every process, do not use "
            f"FSDP."
        )
    return _STRATEGIES[strategy]


def _offloads(policy: Any) -> bool:
    from torch.distributed.fsdp import CPUOffloadPolicy

    return isinstance(policy, CPUOffloadPolicy) or bool(getattr(policy, "offload_params", False))
