"""Devices, processes and arithmetic of a run; accelerate assigns devices and processes."""

from __future__ import annotations

import importlib.util
import os
from datetime import timedelta
from typing import Literal

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs, parse_flag_from_env

from impasto.errors import ConfigError, MissingDependencyError
from impasto.invocation import missing_extra

PROCESS_TIMEOUT = timedelta(days=14)

Memory = Literal["RAM", "VRAM"]

_OUT_OF_RAM = (
    "DefaultCPUAllocator: not enough memory",
    "DefaultCPUAllocator: can't allocate memory",
)
_OUT_OF_VRAM = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def default_device() -> torch.device:
    """Return the current GPU, or the CPU if there is no GPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def build_processes() -> PartialState:
    """Connect the processes that a launcher has started into one process group.

    The timeout is `PROCESS_TIMEOUT`, since processes wait for each other while images are encoded,
    which may take days. A process that dies is noticed by its closed connections or by the
    launcher, not by the timeout.

    Raises:
        ConfigError: accelerate is configured for Megatron-LM.
        MissingDependencyError: accelerate is configured for DeepSpeed, which is not installed or
            does not run on this machine.
    """
    require_parallelism()
    on_gpu, zero = torch.cuda.is_available(), is_configured_for("DEEPSPEED")
    # without an explicit backend, accelerate assumes that DeepSpeed runs on GPUs
    backend = "gloo" if zero and not on_gpu else None
    try:
        return PartialState(cpu=is_on_cpu(), backend=backend, timeout=PROCESS_TIMEOUT)
    except RuntimeError as error:
        if not zero or on_gpu or not any(w in str(error) for w in ("Ninja", "building extension")):
            raise
        raise MissingDependencyError(
            f"DeepSpeed compiles a kernel for CPUs, and that failed ({error}). "
            f"Install g++ and ninja, or run `accelerate config` and choose FSDP."
        ) from error


def require_parallelism() -> None:
    """Make sure that accelerate's parallelism is one that Impasto supports, and is installed.

    Raises:
        ConfigError: accelerate is configured for Megatron-LM.
        MissingDependencyError: accelerate is configured for DeepSpeed, which is not installed.
    """
    if is_configured_for("MEGATRON_LM"):
        raise ConfigError(
            "accelerate is configured for Megatron-LM, which is for language models. Run "
            "`accelerate config` and choose FSDP, DeepSpeed, or none of them."
        )
    if is_configured_for("DEEPSPEED") and importlib.util.find_spec("deepspeed") is None:
        raise missing_extra(
            "deepspeed",
            "accelerate is configured for DeepSpeed, which is not installed.",
            "Or run `accelerate config` and choose FSDP, which shards a model too and comes "
            "with PyTorch.",
        )


def build_accelerator() -> Accelerator:
    """Return an accelerator for the devices and processes of this run.

    It does no mixed precision: that is done by `training/optim/mixed_precision.py`.

    Raises:
        ConfigError: See `build_processes`.
        MissingDependencyError: See `build_processes`.
    """
    build_processes()
    buckets = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
    return Accelerator(cpu=is_on_cpu(), mixed_precision="no", kwargs_handlers=[buckets])


def is_on_cpu() -> bool:
    """Return whether the run computes on the CPU.

    It does if accelerate is configured for it, and if there is no GPU, except under DeepSpeed,
    which chooses its device itself.
    """
    asked = parse_flag_from_env("ACCELERATE_USE_CPU")
    return bool(asked) or not (torch.cuda.is_available() or is_configured_for("DEEPSPEED"))


def is_configured_for(name: str) -> bool:
    """Return whether accelerate is configured to shard a model in the named way.

    Args:
        name: `DEEPSPEED`, `FSDP` or `MEGATRON_LM`; `accelerate launch` sets `ACCELERATE_USE_<name>`
            in the environment.
    """
    return os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true"


def require_precision(mixed_precision: str) -> None:
    """Make sure that the GPU supports the mixed precision of the settings.

    Raises:
        MissingDependencyError: `mixed_precision` is bf16, and the GPU does not compute in bfloat16.
    """
    if not torch.cuda.is_available() or mixed_precision != "bf16":
        return
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        raise MissingDependencyError(
            f"training.mixed_precision is bf16, but {torch.cuda.get_device_name()} does not "
            f"compute in bfloat16 (GPUs from 2020 on do). Set it to auto, fp16 or no."
        )


def set_arithmetic(*, tf32: bool, deterministic: bool = False) -> None:
    """Set TF32 and determinism of GPUs; call it before anything is computed.

    CPUs need neither setting: they compute in full float32, and deterministically.

    Args:
        tf32: Whether float32 matrix products and convolutions round their inputs to TF32.
            PyTorch's defaults do so for convolutions and not for matrix products.
        deterministic: Whether only kernels that give the same bits each time are used. Others sum
            in an order that varies: weight gradients of cuDNN, the backward pass of flash
            attention, `index_add_` (PyTorch's "Reproducibility").
    """
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    if not torch.cuda.is_available():
        return
    if deterministic:  # cuBLAS reads this variable when it is first used
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.deterministic = deterministic
    torch.use_deterministic_algorithms(deterministic)
    # filling new tensors, which are overwritten anyway, would launch a kernel for each
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if deterministic:
        import torch._inductor.config as inductor  # this import takes a second

        torch.backends.cudnn.benchmark = False
        inductor.deterministic = True


def release_cached_memory(device: torch.device) -> None:
    """Release the VRAM that PyTorch's allocator has cached, between two kinds of work.

    Encoding, validation and previews leave cached blocks of sizes that training does not need; if
    they stayed cached, training would have that much less VRAM. Waits for the device.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()


def seed_torch(seed: int) -> None:
    """Seed PyTorch's default generators of the CPU and the current GPU, which dropout draws from.

    `torch.manual_seed` also seeds devices that are not in use yet, and records a stack trace for
    that at every call.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed(seed)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error reports that RAM or VRAM ran out."""
    return exhausted_memory(error) is not None


def exhausted_memory(error: BaseException) -> Memory | None:
    """Return which memory ran out according to an error, or None if it is another kind of error.

    PyTorch raises a separate class for most GPU errors; others, and all of the CPU allocator, are
    recognised by their messages.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return "VRAM"
    if isinstance(error, MemoryError):
        return "RAM"
    text = str(error) if isinstance(error, RuntimeError) else ""
    if any(words in text for words in _OUT_OF_RAM):
        return "RAM"
    return "VRAM" if any(words in text for words in _OUT_OF_VRAM) else None
