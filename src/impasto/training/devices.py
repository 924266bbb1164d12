"""Where a run computes, and on how many processes; accelerate owns both."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from impasto.errors import MissingDependencyError


def default_device() -> torch.device:
    """The first GPU, or the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def build_accelerator() -> Accelerator:
    """Devices and processes; precision is `training/precision.py`'s."""
    handlers = [DistributedDataParallelKwargs(gradient_as_bucket_view=True)]
    return Accelerator(
        cpu=not torch.cuda.is_available(), mixed_precision="no", kwargs_handlers=handlers
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


def seed_torch(seed: int) -> None:
    """Seed what a model's own dropout draws from, on the processor and the current GPU.

    Unlike `torch.manual_seed` it leaves devices alone that are not in use, which costs it a stack
    trace at every call.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed(seed)
