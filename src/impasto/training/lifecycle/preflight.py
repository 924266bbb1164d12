"""Checks of the GPU and its software before a run begins.

Without them, a GPU that PyTorch cannot use would be idle while the CPU trains for days, and an old
GPU or a missing compiler would end the first step with a stack trace from Triton.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import torch

from impasto.config.run import RunConfig
from impasto.errors import ConfigError, MissingDependencyError
from impasto.invocation import cuda_build, install_packages
from impasto.models.networks.loading import load_meta_model
from impasto.training.builders.model import build_open_options
from impasto.training.compute.compile import require_compiler
from impasto.training.compute.float8 import require_float8
from impasto.training.devices import default_device, require_precision
from impasto.training.monitoring.trackers import require_trackers

FULL_SIZE = 200_000_000
"""U-Nets with this many weights are too slow to train on a CPU; SD 1.x has 860 million."""

TRITON_CAPABILITY = (7, 0)
"""The lowest compute capability that torch.compile supports (`GPUTooOldForTriton` in inductor)."""

_COMPILERS = ("gcc", "clang", "cc")


def require_machine(config: RunConfig) -> None:
    """Make sure that this machine has the hardware and software that a run's settings need.

    Raises:
        MissingDependencyError: A package, a compiler, a kernel or a dtype is missing, or a GPU
            would be idle while a full-size model trains on the CPU.
        ConfigError: The GPU is too old for `training.compile` or `training.float8`.
        ModelError: The model cannot be read.
    """
    require_precision(config.training.mixed_precision)
    require_no_idle_card(config)
    require_usable_device(config)
    if config.training.float8:
        require_float8(default_device())
    require_trackers(config.logging.trackers)


def require_usable_device(config: RunConfig) -> None:
    """Make sure that PyTorch has kernels for the GPU, and the compiler that the settings need.

    Raises:
        MissingDependencyError: Kernels or a compiler are missing; the message says what to do.
        ConfigError: The GPU is too old for `training.compile`.
    """
    device = default_device()
    if device.type == "cuda":
        require_kernels(device)
        if config.training.compile != "off":
            require_triton(device)
    elif config.training.compile != "off":
        require_compiler(device)


def unused_gpu() -> str | None:
    """Return the name of an NVIDIA GPU that the driver finds and PyTorch cannot use.

    None if there is no such GPU, and if the user asked for the CPU: by `CUDA_VISIBLE_DEVICES`
    hiding all GPUs, or by `ACCELERATE_USE_CPU`.
    """
    if torch.cuda.is_available() or _is_cpu_wanted():
        return None
    return next(iter(_gpus_of_driver()), None)


def _gpus_of_driver() -> list[str]:
    """Return the names of the NVIDIA GPUs that the driver finds, in its order."""
    if not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    names = found.stdout.strip().splitlines() if found.returncode == 0 else []
    return [name.strip() for name in names]


def require_no_idle_card(config: RunConfig) -> None:
    """Make sure that a full-size model does not train on the CPU while a GPU is idle by mistake.

    Raises:
        MissingDependencyError: A GPU is idle, and the model has at least `FULL_SIZE` weights.
        ModelError: The model cannot be read.
    """
    card = unused_gpu()
    if card is None or _unet_numel(config) < FULL_SIZE:
        return
    raise MissingDependencyError(
        f"PyTorch does not use the {card} of this machine: {why_gpu_unused()} On the CPU this run "
        f"would take days. To train on the CPU all the same, set the environment variable "
        f"CUDA_VISIBLE_DEVICES to -1."
    )


def why_gpu_unused() -> str:
    """Return, in sentences, why PyTorch does not use an existing GPU, and what to do."""
    if torch.version.cuda is None:
        return f"it is a CPU build. Install the CUDA build: {cuda_build()}."
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = len(_gpus_of_driver()) if visible else 0
    if visible and _names_no_gpu(visible, count):
        return (
            f"CUDA_VISIBLE_DEVICES is {visible!r}, and the driver finds {count} GPU"
            f"{'' if count == 1 else 's'}, counted from 0. Give a number below {count}."
        )
    return (
        f"it is built for CUDA {torch.version.cuda}, which the driver does not support. Update "
        f"the NVIDIA driver; nvidia-smi shows the newest CUDA version that a driver supports."
    )


def require_kernels(device: torch.device) -> None:
    """Make sure that this build of PyTorch has kernels for a GPU.

    Raises:
        MissingDependencyError: The GPU is older than the oldest that the build supports.
    """
    built = [name.removeprefix("sm_") for name in torch.cuda.get_arch_list() if "sm_" in name]
    oldest = min((int(number) for number in built if number.isdigit()), default=0)
    major, minor = torch.cuda.get_device_capability(device)
    if 10 * major + minor < oldest:
        raise MissingDependencyError(
            f"{torch.cuda.get_device_name(device)} has compute capability {major}.{minor}, and "
            f"this build of PyTorch begins at {oldest // 10}.{oldest % 10}. Install a build for an "
            f"older CUDA version, with the index URL from PyTorch's website: {cuda_build()}."
        )


def require_triton(device: torch.device) -> None:
    """Make sure that torch.compile finds Triton, and the compiler that Triton needs, for a GPU.

    Triton compiles a small C file against Python's headers when it first uses a GPU. Its Windows
    build includes a compiler.

    Raises:
        MissingDependencyError: Triton, a C compiler or Python's headers are missing.
        ConfigError: The GPU is too old.
    """
    off = 'Or set training.compile to "off".'
    capability = torch.cuda.get_device_capability(device)
    if capability < TRITON_CAPABILITY:
        major, minor = capability
        raise ConfigError(
            f"training.compile needs a GPU of compute capability 7.0 (2017) or later; "
            f"{torch.cuda.get_device_name(device)} has {major}.{minor}. "
            'Set training.compile to "off".'
        )
    if importlib.util.find_spec("triton") is None:
        package = "triton-windows" if os.name == "nt" else "triton"
        raise MissingDependencyError(
            "training.compile needs Triton on a GPU, which is not installed. Install it with: "
            f"{install_packages(package)}\n{off}"
        )
    if os.name == "nt":
        return
    if not _finds_compiler():
        raise MissingDependencyError(
            "training.compile needs a C compiler for Triton, and none is on the path (gcc, clang, "
            f"or the one in CC). Install one, on Debian and Ubuntu: apt install gcc. {off}"
        )
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.is_file():
        version = sysconfig.get_python_version()
        raise MissingDependencyError(
            f"training.compile needs Python's headers for Triton, and {header} is missing. "
            f"Install them, on Debian and Ubuntu: apt install python{version}-dev. {off}"
        )


def _finds_compiler() -> bool:
    asked = os.environ.get("CC")
    return any(shutil.which(name) for name in ([asked] if asked else _COMPILERS))


def _is_cpu_wanted() -> bool:
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
        return True
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible is not None and visible.strip() in ("", "-1")


def _names_no_gpu(visible: str, count: int) -> bool:
    """Return whether `CUDA_VISIBLE_DEVICES` has numbers only, and the first is of no GPU.

    CUDA ignores every name after the first that is of no GPU.
    """
    names = [name.strip() for name in visible.split(",")]
    return all(name.isdecimal() for name in names) and int(names[0]) >= count


def _unet_numel(config: RunConfig) -> int:
    meta_model = load_meta_model(config.model.path, build_open_options(config))
    return sum(parameter.numel() for parameter in meta_model.unet.parameters())
