"""What is wrong with a graphics card or its software, found before a run begins.

A card that PyTorch cannot use would sit idle beside a CPU that works for days; an old card, or a
missing compiler, would end the first step with a trace of Triton's.
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
"""Weights of a U-Net from which on a CPU is not what anybody wants; SD 1.x has 860 million."""

TRITON_CAPABILITY = (7, 0)
"""The oldest cards that torch.compile makes kernels for (torch/_inductor, `GPUTooOldForTriton`)."""

_COMPILERS = ("gcc", "clang", "cc")


def require_machine(config: RunConfig) -> None:
    """Make sure that this machine has what the settings of a run need, whoever asks.

    Raises:
        MissingDependencyError: A package, a compiler, a kernel or a number format is missing, or a
            GPU would be idle beside a run of full size.
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
    """Make sure that PyTorch has kernels for the card, and finds what it compiles with.

    Raises:
        MissingDependencyError: One of it is not so; with what to do.
        ConfigError: The card is too old for `training.compile`.
    """
    device = default_device()
    if device.type == "cuda":
        require_kernels(device)
        if config.training.compile != "off":
            require_triton(device)
    elif config.training.compile != "off":
        require_compiler(device)


def unused_gpu() -> str | None:
    """The NVIDIA card that the driver knows and PyTorch does not use; None where there is none.

    `CUDA_VISIBLE_DEVICES` that hides all cards, or `ACCELERATE_USE_CPU`, asks for this.
    """
    if torch.cuda.is_available() or _is_cpu_wanted() or not shutil.which("nvidia-smi"):
        return None
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    names = found.stdout.strip().splitlines() if found.returncode == 0 else []
    return names[0].strip() if names else None


def require_no_idle_card(config: RunConfig) -> None:
    """Refuse a full-size run on a CPU beside a card that could do it, unless it is asked for.

    Raises:
        MissingDependencyError: There is an idle card, and the model is of full size.
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
    """Why PyTorch does not use a card that is there, and what to do, in sentences."""
    if torch.version.cuda is None:
        return f"it is a CPU build. Install the CUDA build: {cuda_build()}."
    return (
        f"it is built for CUDA {torch.version.cuda}, which the driver does not go with. Update the "
        f"NVIDIA driver; nvidia-smi shows up to which CUDA version it goes."
    )


def require_kernels(device: torch.device) -> None:
    """Make sure that this build of PyTorch has kernels for a card.

    Raises:
        MissingDependencyError: The card is older than all of them.
    """
    built = [name.removeprefix("sm_") for name in torch.cuda.get_arch_list() if "sm_" in name]
    oldest = min((int(number) for number in built if number.isdigit()), default=0)
    major, minor = torch.cuda.get_device_capability(device)
    if 10 * major + minor < oldest:
        raise MissingDependencyError(
            f"{torch.cuda.get_device_name(device)} has compute capability {major}.{minor}, and "
            f"this build of PyTorch begins at {oldest // 10}.{oldest % 10}. Take a build for an "
            f"older CUDA version, whose index PyTorch's own page names: {cuda_build()}."
        )


def require_triton(device: torch.device) -> None:
    """Make sure that torch.compile finds what it makes kernels with on a GPU.

    Triton compiles a small C file against Python's headers when it first meets a card. Its build
    for Windows brings a compiler along.

    Raises:
        MissingDependencyError: Triton, a C compiler or Python's headers are missing.
        ConfigError: The card is too old.
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
            "training.compile needs a C compiler for Triton, and there is none on the path (gcc or "
            f"clang, or what CC names). Install one, on Debian and Ubuntu: apt install gcc. {off}"
        )
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.is_file():
        version = sysconfig.get_python_version()
        raise MissingDependencyError(
            f"training.compile needs Python's headers for Triton, and {header} is not there. "
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


def _unet_numel(config: RunConfig) -> int:
    meta_model = load_meta_model(config.model.path, build_open_options(config))
    return sum(parameter.numel() for parameter in meta_model.unet.parameters())
