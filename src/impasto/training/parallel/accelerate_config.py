"""What accelerate's configuration asks for where a model is to be sharded, and what that allows.

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
    """What accelerate's configuration shards models by; empty if by nothing."""
    if is_configured_for("FSDP"):
        return "FSDP"
    return "DeepSpeed" if is_configured_for("DEEPSPEED") else ""


def read_sharding(processes: int) -> Sharding:
    """How much of a model each process will have, by what accelerate is configured for."""
    if is_configured_for("FSDP"):
        return Sharding(processes, processes, processes)
    if is_configured_for("DEEPSPEED"):
        stage = int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") or 2)
        gradients = processes if stage > 1 else 1
        return Sharding(1, gradients, processes, has_master_weights=True)
    return Sharding()


def reshard_after_forward() -> bool:
    """Whether blocks are taken apart after their forward pass, by accelerate's settings of FSDP.

    Raises:
        ConfigError: They ask for something that is not offered.
    """
    from accelerate.utils import FullyShardedDataParallelPlugin

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its first version is deprecated
        plugin: Any = FullyShardedDataParallelPlugin()
    if _offloads(plugin.cpu_offload):
        raise ConfigError(
            "accelerate's fsdp_offload_params keeps weights in RAM, which is not "
            "offered. Set it to false; training.gradient_checkpointing saves memory."
        )
    if plugin.activation_checkpointing:
        raise ConfigError(
            "accelerate's fsdp_activation_checkpointing is training.gradient_checkpointing here. "
            "Set the one to false and the other to true."
        )
    if plugin.fsdp_version == 2:
        return bool(plugin.reshard_after_forward)
    strategy = plugin.sharding_strategy.name
    if strategy not in _STRATEGIES:
        raise ConfigError(
            f"accelerate's fsdp_sharding_strategy is {strategy}; expected "
            f"{' or '.join(_STRATEGIES)}. For whole models in every process, choose no FSDP."
        )
    return _STRATEGIES[strategy]


def _offloads(policy: Any) -> bool:
    from torch.distributed.fsdp import CPUOffloadPolicy

    return isinstance(policy, CPUOffloadPolicy) or bool(getattr(policy, "offload_params", False))
