"""Frozen networks whose tensors wait in a file while nobody uses them.

On a processor "off the device" is out of the memory: a VAE is needed again for previews and for the
export only, a text encoder whose captions are encoded for the export.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from impasto.checkpoints.reading import open_tensor_file
from impasto.checkpoints.tensors import LazyTensor, Tensors
from impasto.checkpoints.writing import write_safetensors
from impasto.models.loading import fill, materialise_buffers

META = torch.device("meta")


def offload_to_file(
    module: nn.Module, file: Path, stored: Mapping[str, torch.dtype] | None = None
) -> Tensors:
    """Move a frozen network's tensors into a file, and give them as they are read from it.

    `on_device` brings the network back for a while.

    Args:
        module: The network.
        file: Where its tensors wait.
        stored: The types that they were read from, by name: a tensor that has the same values in
            its own waits there in that type, so that fewer bytes are written.

    Raises:
        StorageError: The file cannot be written; the network is as it was.
    """
    types = stored or {}
    own = {
        name: _in_its_type(tensor.detach(), types.get(name, tensor.dtype))
        for name, tensor in module.state_dict().items()
    }
    write_safetensors(file, own, {}, finite_only=False, hashed=False)
    tensors = open_tensor_file(file).tensors
    waiting: Any = module
    waiting.offloaded_tensors = tensors
    module.to(META)
    return tensors


def _in_its_type(tensor: Tensor, stored: torch.dtype) -> LazyTensor:
    """The tensor in the type that it was read from, if that has its values and is narrower."""
    lazy = LazyTensor.of(tensor)
    if stored.itemsize >= tensor.dtype.itemsize or not stored.is_floating_point:
        return lazy
    is_same = torch.equal(tensor.to(stored).to(tensor.dtype), tensor)
    return lazy.cast(stored) if is_same else lazy


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
