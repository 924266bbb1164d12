"""Where a run computes, and on how many processes; accelerate owns both."""

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
    """The first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def build_processes() -> PartialState:
    """Have the processes that a launcher has started find each other.

    Processes wait for each other while they encode images, which may take days; one that dies is
    noticed by its connections or the launcher, not by a timeout.

    Raises:
        ConfigError: accelerate is configured for Megatron-LM.
        MissingDependencyError: It is configured for DeepSpeed, which is not installed or does not
            run here.
    """
    require_parallelism()
    on_gpu, zero = torch.cuda.is_available(), is_configured_for("DEEPSPEED")
    # accelerate takes DeepSpeed for GPUs only, unless it is told how processes talk to each other
    backend = "gloo" if zero and not on_gpu else None
    try:
        return PartialState(cpu=is_on_cpu(), backend=backend, timeout=PROCESS_TIMEOUT)
    except RuntimeError as error:
        if not zero or on_gpu or not any(w in str(error) for w in ("Ninja", "building extension")):
            raise
        raise MissingDependencyError(
            f"DeepSpeed builds a kernel of its own for CPUs, and could not ({error}). "
            f"Install g++ and ninja, or run `accelerate config` and choose FSDP."
        ) from error


def require_parallelism() -> None:
    """Make sure that accelerate is configured for what is offered here and installed.

    Raises:
        ConfigError: It is configured for Megatron-LM.
        MissingDependencyError: It is configured for DeepSpeed, which is not installed.
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
    """Devices and processes; precision is `training/optim/mixed_precision.py`'s.

    Raises:
        ConfigError: As `build_processes`.
        MissingDependencyError: The same.
    """
    build_processes()
    buckets = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
    return Accelerator(cpu=is_on_cpu(), mixed_precision="no", kwargs_handlers=[buckets])


def is_on_cpu() -> bool:
    """Whether accelerate is told to use no GPU."""
    asked = parse_flag_from_env("ACCELERATE_USE_CPU")
    return bool(asked) or not (torch.cuda.is_available() or is_configured_for("DEEPSPEED"))


def is_configured_for(name: str) -> bool:
    """Whether accelerate's configuration asks for one of its ways to share a model out.

    Args:
        name: `DEEPSPEED`, `FSDP` or `MEGATRON_LM`; accelerate launch says so in the environment.
    """
    return os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true"


def require_precision(mixed_precision: str) -> None:
    """Make sure that the device computes as precisely as asked.

    Raises:
        MissingDependencyError: It does not.
    """
    if not torch.cuda.is_available() or mixed_precision != "bf16":
        return
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        raise MissingDependencyError(
            f"training.mixed_precision is bf16, but {torch.cuda.get_device_name()} does not "
            f"compute in bfloat16 (GPUs from 2020 on do). Set it to auto, fp16 or no."
        )


def set_arithmetic(*, tf32: bool, deterministic: bool = False) -> None:
    """How GPUs compute, before anything is computed; CPUs are exact and steady as they are.

    Args:
        tf32: Whether float32 matrix products and convolutions round what they multiply to TF32.
            PyTorch's defaults do so for convolutions and not for matrix products.
        deterministic: Whether only kernels are used that give the same bits each time. Others add
            up in the order in which they get to it: weight gradients of cuDNN, the backward pass of
            flash attention, `index_add_` (PyTorch's "Reproducibility").
    """
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    if not torch.cuda.is_available():
        return
    if deterministic:  # cuBLAS reads it when it is first used
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.deterministic = deterministic
    torch.use_deterministic_algorithms(deterministic)
    # memory that is about to be written needs no filling, which costs a kernel each time
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if deterministic:
        import torch._inductor.config as inductor  # which takes a second to import

        torch.backends.cudnn.benchmark = False
        inductor.deterministic = True


def release_cached_memory(device: torch.device) -> None:
    """Give memory of a GPU back that PyTorch keeps for later, after work of another kind.

    Encoding, validation and previews leave pieces of other sizes behind than training needs; kept,
    they would be missing there. Waits for the device.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()


def seed_torch(seed: int) -> None:
    """Seed what a model's own dropout draws from, on the CPU and the current GPU.

    Unlike `torch.manual_seed` it leaves devices alone that are not in use, which costs it a stack
    trace at every call.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed(seed)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that RAM or VRAM ran out."""
    return exhausted_memory(error) is not None


def exhausted_memory(error: BaseException) -> Memory | None:
    """Which memory ran out by an error; None where it is about something else.

    PyTorch has a class for GPUs, and words for the CPU.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return "VRAM"
    if isinstance(error, MemoryError):
        return "RAM"
    text = str(error) if isinstance(error, RuntimeError) else ""
    if any(words in text for words in _OUT_OF_RAM):
        return "RAM"
    return "VRAM" if any(words in text for words in _OUT_OF_VRAM) else None
