"""Where a run computes, and how precisely; accelerate owns both."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from impasto.errors import MissingDependencyError


def default_device() -> torch.device:
    """The first GPU, or the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def build_accelerator(mixed_precision: str) -> Accelerator:
    """Devices, precision and processes.

    Raises:
        MissingDependencyError: The precision asked for is not available on this device.
    """
    cpu = not torch.cuda.is_available()
    if mixed_precision == "bf16" and not cpu and not torch.cuda.is_bf16_supported():
        raise MissingDependencyError(
            f"training.mixed_precision is bf16, but {torch.cuda.get_device_name()} does not "
            f"compute in bfloat16 (GPUs from 2020 on do). Set it to no."
        )
    handlers = [DistributedDataParallelKwargs(gradient_as_bucket_view=True)]
    return Accelerator(cpu=cpu, mixed_precision=mixed_precision, kwargs_handlers=handlers)


def seed_torch(seed: int) -> None:
    """Seed what a model's own dropout draws from, on the processor and the current GPU.

    Unlike `torch.manual_seed` it leaves devices alone that are not in use, which costs it a stack
    trace at every call.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed(seed)
