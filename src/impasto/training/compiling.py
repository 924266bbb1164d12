"""The U-Net through torch.compile, once for each size of pictures.

Compiled in place (`nn.Module.compile`), so that names of tensors, hooks and wrappers stay as they
are. Validation and previews run the plain network: their sizes would have to be compiled too.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from impasto.errors import ConfigError, MissingDependencyError
from impasto.invocation import install_packages

Compile = Literal["off", "blocks", "full"]
BLOCKS = ("ResnetBlock2D", "BasicTransformerBlock", "Downsample2D", "Upsample2D")
_KINDS_PER_SIZE = 12  # blocks of one class that differ in widths and inputs, with some to spare


def compile_unet(
    unet: Any, kind: Compile, *, sizes: int, cuda_graphs: bool, cache: Path, device: torch.device
) -> None:
    """Have a U-Net compiled when it is first called.

    Args:
        unet: diffusers' UNet2DConditionModel.
        kind: `blocks` compiles its blocks one by one, `full` the whole.
        sizes: How many shapes of batches will come.
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
    limit = sizes * _KINDS_PER_SIZE
    torch._dynamo.config.recompile_limit = max(limit, torch._dynamo.config.recompile_limit)
    torch._dynamo.config.accumulated_recompile_limit = max(
        64 * limit, torch._dynamo.config.accumulated_recompile_limit
    )
    options = {"triton.cudagraphs": True} if cuda_graphs else None
    for module in [unet] if kind == "full" else blocks_of(unet):
        module.compile(dynamic=False, options=options)


def blocks_of(unet: nn.Module) -> list[nn.Module]:
    """What repeats itself in a U-Net."""
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
        if importlib.util.find_spec("triton") is None:
            raise MissingDependencyError(
                "training.compile needs Triton on a GPU, which is not installed. On Windows: "
                f"{install_packages('triton-windows')}\n"
                'Or set training.compile to "off".'
            )
        return
    names = [os.environ.get("CXX", ""), "g++", "clang++", "cl"]
    if not any(name and shutil.which(name) for name in names):
        raise MissingDependencyError(
            "training.compile needs a C++ compiler on a processor, and there is none on the path "
            '(g++, clang++ or cl). Install one, or set training.compile to "off".'
        )
