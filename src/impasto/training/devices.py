"""Where a run computes, and on how many processes; accelerate owns both."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from impasto.errors import ConfigError, MissingDependencyError

PATIENCE = timedelta(days=14)
_LOST = ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL error")


def default_device() -> torch.device:
    """The first GPU, or the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def build_accelerator() -> Accelerator:
    """Devices and processes; precision is `training/precision.py`'s.

    Processes wait for the first one while it encodes pictures, which may take days; a process that
    dies is noticed by the launcher, not by a timeout.

    Raises:
        ConfigError: accelerate is configured to cut the model into pieces.
    """
    require_whole_models()
    handlers = [
        DistributedDataParallelKwargs(gradient_as_bucket_view=True),
        InitProcessGroupKwargs(timeout=PATIENCE),
    ]
    return Accelerator(
        cpu=not torch.cuda.is_available(), mixed_precision="no", kwargs_handlers=handlers
    )


def require_whole_models() -> None:
    """Make sure that each process will have the whole model.

    Raises:
        ConfigError: accelerate's configuration asks for DeepSpeed, FSDP or Megatron-LM.
    """
    for name in ("DEEPSPEED", "FSDP", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true":
            raise ConfigError(
                f"accelerate is configured for {name}, which cuts a model into pieces; here each "
                f"process has the whole model, and they exchange gradients (distributed_type "
                f"MULTI_GPU). Run `accelerate config` and choose no {name}. What saves memory: "
                f"optimizer.kind adamw8bit, training.weights bf16, training.gradient_checkpointing."
            )


def require_precision(mixed_precision: str) -> None:
    """Make sure that the device computes as precisely as asked.

    Raises:
        MissingDependencyError: It does not.
    """
    if not torch.cuda.is_available() or mixed_precision != "bf16":
        return
    if not torch.cuda.is_bf16_supported():
        raise MissingDependencyError(
            f"training.mixed_precision is bf16, but {torch.cuda.get_device_name()} does not "
            f"compute in bfloat16 (GPUs from 2020 on do). Set it to fp16 or no."
        )


def set_float32_precision(*, tf32: bool) -> None:
    """How GPUs compute float32 matrix products and convolutions; processors compute them exactly.

    PyTorch's defaults round convolutions to TF32 and matrix products not.
    """
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32


def is_lost_process(error: BaseException) -> bool:
    """Whether an exchange between processes failed because one of them is gone."""
    return isinstance(error, torch.distributed.DistError) or any(
        words in str(error) for words in _LOST
    )


def seed_torch(seed: int) -> None:
    """Seed what a model's own dropout draws from, on the processor and the current GPU.

    Unlike `torch.manual_seed` it leaves devices alone that are not in use, which costs it a stack
    trace at every call.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed(seed)
