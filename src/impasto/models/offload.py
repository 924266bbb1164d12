"""Frozen networks whose tensors wait in a file while nobody uses them.

On a processor "off the device" is out of the memory: a VAE is needed again for previews and for the
export only, a text encoder whose captions are encoded for the export.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from impasto.checkpoints.reading import open_tensor_file
from impasto.checkpoints.tensors import LazyTensor, Tensors
from impasto.checkpoints.writing import write_safetensors
from impasto.models.loading import fill, materialise_buffers

META = torch.device("meta")


def offload_to_file(module: nn.Module, file: Path) -> Tensors:
    """Move a frozen network's tensors into a file, and give them as they are read from it.

    `on_device` brings the network back for a while.

    Raises:
        StorageError: The file cannot be written; the network is as it was.
    """
    own = {name: LazyTensor.of(tensor) for name, tensor in module.state_dict().items()}
    write_safetensors(file, own, {}, finite_only=False)
    tensors = open_tensor_file(file).tensors
    waiting: Any = module
    waiting.offloaded_tensors = tensors
    module.to(META)
    return tensors


@contextlib.contextmanager
def on_device(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Have a network on a device for a while; afterwards it is where it was, or waits again.

    Raises:
        ModelError: The file that its tensors wait in is gone or was changed.
    """
    first: Any = next(module.parameters())
    home, dtype = first.device, first.dtype
    if home == META:
        tensors: Any = module.offloaded_tensors
        fill(module, tensors, "a network that waited in the run's directory", _no_progress, dtype)
        materialise_buffers(module)
    module.to(device)
    try:
        yield
    finally:
        module.to(home)


def _no_progress(_: int) -> None:
    """Nobody is told of so short a wait."""
