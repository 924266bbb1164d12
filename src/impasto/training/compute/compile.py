"""Compiles the U-Net with torch.compile, once per image size.

It is compiled in place (`nn.Module.compile`), so that tensor names, hooks and wrappers stay the
same. Validation and previews run the uncompiled network: their sizes would have to be compiled too.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from impasto.errors import ConfigError, MissingDependencyError, RunError

Compile = Literal["off", "blocks", "full"]
BLOCKS = ("ResnetBlock2D", "BasicTransformerBlock", "Downsample2D", "Upsample2D")
_SHAPES_PER_SIZE = 4  # full batches and short ones, each with and without gradients


def compile_unet(
    unet: Any, kind: Compile, *, sizes: int, cuda_graphs: bool, cache: Path, device: torch.device
) -> None:
    """Set up a U-Net to be compiled when it is first called.

    Args:
        unet: diffusers' UNet2DConditionModel.
        kind: `blocks` compiles its blocks one by one, `full` the whole U-Net; `off` does nothing.
        sizes: Number of different batch shapes: image sizes times caption lengths.
        cuda_graphs: Whether each shape's kernels are recorded and launched together.
        cache: The folder that stores compiled code between runs.
        device: The device that the U-Net computes on.

    Raises:
        ConfigError: CUDA graphs were requested without a GPU.
        MissingDependencyError: There is no C++ compiler.
    """
    if kind == "off":
        return
    if cuda_graphs and device.type != "cuda":
        raise ConfigError("training.cuda_graphs needs a GPU, and this run has none. Remove it.")
    require_compiler(device)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache.absolute()))
    modules = [unet] if kind == "full" else blocks_of(unet)
    _allow_graphs(modules, sizes * _SHAPES_PER_SIZE)
    options = {"triton.cudagraphs": True} if cuda_graphs else None
    for module in modules:
        module.compile(dynamic=False, options=options)


def _allow_graphs(modules: Sequence[nn.Module], shapes: int) -> None:
    """Raise torch.compile's limits to the number of graphs that modules and shapes may need.

    torch.compile counts graphs per code object, which all blocks of a class share, and beyond its
    limit it silently runs uncompiled code: here that is made an error.
    """
    alike = Counter(type(module) for module in modules)
    limit = max(alike.values()) * shapes
    dynamo = torch._dynamo.config
    dynamo.recompile_limit = max(limit, dynamo.recompile_limit)
    dynamo.accumulated_recompile_limit = max(len(alike) * limit, dynamo.accumulated_recompile_limit)
    dynamo.fail_on_recompile_limit_hit = True


@contextlib.contextmanager
def within_limit() -> Iterator[None]:
    """Within the context, turn torch.compile's error about its graph limit into a RunError.

    Raises:
        RunError: More graphs were compiled than allowed.
    """
    from torch._dynamo.exc import FailOnRecompileLimitHit

    try:
        yield
    except FailOnRecompileLimitHit as error:
        raise RunError(
            f"torch.compile has compiled {torch._dynamo.config.recompile_limit} graphs for one "
            "kind of block, which is more than the image sizes and caption lengths need, and would "
            'leave the rest uncompiled. Set training.compile to "off" or "full".'
        ) from error


def blocks_of(unet: nn.Module) -> list[nn.Module]:
    """Return the repeated blocks of a U-Net, which are compiled one by one."""
    return [module for module in unet.modules() if type(module).__name__ in BLOCKS]


@contextlib.contextmanager
def plain_network() -> Iterator[None]:
    """Within the context, run compiled networks uncompiled."""
    with torch.compiler.set_stance("force_eager"):
        yield


def require_compiler(device: torch.device) -> None:
    """Check that torch.compile finds a C++ compiler on a CPU.

    Raises:
        MissingDependencyError: There is none on the path.
    """
    if device.type == "cuda":
        return  # `preflight.py` has checked it before the run started
    names = [os.environ.get("CXX", ""), "g++", "clang++", "cl"]
    if not any(name and shutil.which(name) for name in names):
        raise MissingDependencyError(
            "training.compile needs a C++ compiler on a CPU, and none is on the path "
            '(g++, clang++ or cl). Install one, or set training.compile to "off".'
        )
