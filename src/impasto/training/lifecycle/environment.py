"""Software versions and hardware of a machine, for the run directory and `impasto doctor`."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
from typing import Any

import torch

from impasto import ram

PACKAGES = (
    "impasto", "torch", "diffusers", "transformers", "accelerate", "safetensors", "numpy", "pillow",
)  # fmt: skip


def describe_environment() -> dict[str, Any]:
    """Return versions of Python and packages, CPU, RAM and GPUs, without the machine's name."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_gib": round(ram.total_bytes() / 2**30, 1),
        "packages": {name: _version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
        "gpus": [
            {
                "name": torch.cuda.get_device_name(index),
                "memory_gib": round(torch.cuda.mem_get_info(index)[1] / 2**30, 1),
                "free_gib": round(torch.cuda.mem_get_info(index)[0] / 2**30, 1),
            }
            for index in range(torch.cuda.device_count())
        ],
    }


@functools.cache
def _version(name: str) -> str:
    """Return the installed version of a package, or "not installed".

    Cached, since reading a package's metadata is slow.
    """
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
