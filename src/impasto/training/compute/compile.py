"""The U-Net through torch.compile, once for each size of images.

Compiled in place (`nn.Module.compile`), so that names of tensors, hooks and wrappers stay as they
are. Validation and previews run the plain network: their sizes would have to be compiled too.
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
    """Have a U-Net compiled when it is first called.

    Args:
        unet: diffusers' UNet2DConditionModel.
        kind: `blocks` compiles its blocks one by one, `full` the whole.
        sizes: How many shapes of batches will come: sizes of images times lengths of captions.
        cuda_graphs: Whether each shape's kernels are recorded and launched together.
        cache: Where compiled code is kept between runs.
        device: Where it computes.

    Raises:
        ConfigError: CUDA graphs were asked for without a GPU.
        MissingDependencyError: There is no compiler.
    """
    if kind == "off":
        return
    if cuda_graphs and device.type != "cuda":
        raise ConfigError("training.cuda_graphs is for GPUs, and this run has none. Take it out.")
    require_compiler(device)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache.absolute()))
    modules = [unet] if kind == "full" else blocks_of(unet)
    _allow_graphs(modules, sizes * _SHAPES_PER_SIZE)
    options = {"triton.cudagraphs": True} if cuda_graphs else None
    for module in modules:
        module.compile(dynamic=False, options=options)


def _allow_graphs(modules: Sequence[nn.Module], shapes: int) -> None:
    """Let each class of modules have as many graphs as its modules and shapes may need.

    torch.compile counts graphs by the code they are made of, which all blocks of a class share, and
    beyond its limit it runs them as they are written, without a word: here that is an error.
    """
    alike = Counter(type(module) for module in modules)
    limit = max(alike.values()) * shapes
    dynamo = torch._dynamo.config
    dynamo.recompile_limit = max(limit, dynamo.recompile_limit)
    dynamo.accumulated_recompile_limit = max(len(alike) * limit, dynamo.accumulated_recompile_limit)
    dynamo.fail_on_recompile_limit_hit = True


@contextlib.contextmanager
def within_limit() -> Iterator[None]:
    """Explain it if there are more graphs than were allowed.

    Raises:
        RunError: There are.
    """
    from torch._dynamo.exc import FailOnRecompileLimitHit

    try:
        yield
    except FailOnRecompileLimitHit as error:
        raise RunError(
            f"torch.compile has made {torch._dynamo.config.recompile_limit} graphs for one kind of "
            "block, which is more than the sizes of images and lengths of captions need, and would "
            'leave the rest uncompiled. Set training.compile to "off", or to "full".'
        ) from error


def blocks_of(unet: nn.Module) -> list[nn.Module]:
    """The modules of a U-Net that repeat, which are compiled once each."""
    return [module for module in unet.modules() if type(module).__name__ in BLOCKS]


@contextlib.contextmanager
def plain_network() -> Iterator[None]:
    """Run compiled networks as they were written, for a while."""
    with torch.compiler.set_stance("force_eager"):
        yield


def require_compiler(device: torch.device) -> None:
    """Make sure that torch.compile finds what it makes code with.

    Raises:
        MissingDependencyError: It would not.
    """
    if device.type == "cuda":
        return  # asked of the card before the run began: `preflight.py`
    names = [os.environ.get("CXX", ""), "g++", "clang++", "cl"]
    if not any(name and shutil.which(name) for name in names):
        raise MissingDependencyError(
            "training.compile needs a C++ compiler on a CPU, and there is none on the path "
            '(g++, clang++ or cl). Install one, or set training.compile to "off".'
        )
