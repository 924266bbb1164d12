"""Frozen networks that wait while nobody uses them: in a file, or in RAM as they were stored.

A VAE is needed for images whose latents are not cached, for previews and for the export; text
encoders whose captions are encoded, for the export alone. So they begin without values: their
tensors are kept as the model's file has them (`load_base_model`), and `on_device` and `wake` make a
network of them when one is asked for. On a CPU "off the device" is out of the memory, so they
wait in files there.
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
from impasto.models.networks.keeping import META
from impasto.models.networks.loading import fill, materialise_buffers, tensors_of
from impasto.models.networks.widening import kept_type, widen_in_layers
from impasto.models.reading.completeness import named_as_in
from impasto.progress import Advance


def keep_in_ram(tensors: Tensors) -> Tensors:
    """Copies of tensors as they are stored, so that nothing depends on their file any more."""
    return {name: LazyTensor.of(tensor.read_as(tensor.dtype)) for name, tensor in tensors.items()}


def keep_in_file(tensors: Tensors, file: Path, advance: Advance | None = None) -> Tensors:
    """Copy tensors into a file of ours, which need not outlive a crash of the system.

    Args:
        tensors: By name.
        file: Where they go; replaced if it exists.
        advance: Called with the number of bytes written.

    Raises:
        StorageError: The file cannot be written.
    """
    write_safetensors(
        file, tensors, {}, advance, unchecked=tensors.keys(), hashed=False, durable=False
    )
    return open_tensor_file(file).tensors


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
    waiting: Any = module
    waiting.offloaded_tensors = dict(keep_in_file(own, file))
    module.to(META)
    return waiting.offloaded_tensors  # type: ignore[no-any-return]


def _in_its_type(tensor: Tensor, stored: torch.dtype) -> LazyTensor:
    """The tensor in the type that it was read from, if that has its values and is narrower."""
    lazy = LazyTensor.of(tensor)
    if stored.itemsize >= tensor.dtype.itemsize or not stored.is_floating_point:
        return lazy
    is_same = torch.equal(tensor.to(stored).to(tensor.dtype), tensor)
    return lazy.cast(stored) if is_same else lazy


def is_waiting(module: nn.Module) -> bool:
    """Whether a network has no values now, and waits for being asked for."""
    first: Any = next(module.parameters())
    return first.device == META and hasattr(module, "offloaded_tensors")


def wait_again(module: nn.Module) -> bool:
    """Have a network that waited before give up its values; whether there was such a time.

    They are those that are kept: only frozen networks wait.
    """
    if not hasattr(module, "offloaded_tensors"):
        return False
    module.to(META)
    return True


def weights_of(module: nn.Module) -> Mapping[str, Tensor | LazyTensor]:
    """The tensors of a network's state by name, lazy ones in its own type where it waits."""
    if not is_waiting(module):
        return module.state_dict()
    inside, waiting = module.state_dict(), _kept_by(module)
    first: Any = next(module.parameters())
    return {named_as_in(inside, name): tensor.cast(first.dtype) for name, tensor in waiting.items()}


def wake(module: nn.Module, device: torch.device) -> None:
    """Bring a network to a device, from wherever it is or waits.

    Raises:
        ModelError: The file that its tensors wait in is gone or was changed.
    """
    if is_waiting(module):
        first: Any = next(module.parameters())
        source = "a network that waited in the run's directory"
        dtype = kept_type if hasattr(module, "widens_in_layers") else first.dtype
        fill(module, _kept_by(module), source, _no_progress, dtype)
        materialise_buffers(module)
    module.to(device)


def wake_for_good(module: nn.Module, device: torch.device) -> None:
    """Bring a network that waits to a device, and keep its tensors nowhere else any more.

    Whoever has them by name reads them from the network from now on.
    """
    kept = _kept_by(module)
    wake(module, device)
    kept.clear()
    kept.update(tensors_of(module))
    del module.offloaded_tensors


def keep_stored_types(module: nn.Module) -> None:
    """Have a network that waits come back in the types that it is stored in, and compute as before.

    See `models/networks/widening.py`; one of other layers comes back in float32.
    """
    if widen_in_layers(module):
        waiting: Any = module
        waiting.widens_in_layers = True


@contextlib.contextmanager
def on_device(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Have a network on a device for a while; afterwards it is where it was, or waits again.

    Raises:
        ModelError: The file that its tensors wait in is gone or was changed.
    """
    first: Any = next(module.parameters())
    home = first.device
    wake(module, device)
    try:
        yield
    finally:
        module.to(home)


def _kept_by(module: nn.Module) -> dict[str, LazyTensor]:
    waiting: Any = module
    return waiting.offloaded_tensors  # type: ignore[no-any-return]


def _no_progress(_: int) -> None:
    """Show no progress: the wait is short."""
