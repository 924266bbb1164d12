"""Frozen networks that are offloaded while unused: to a file, or to RAM in their stored dtypes.

A VAE is needed for images whose latents are not cached, for previews and for the export; text
encoders whose captions are encoded, for the export alone. So they start without values: their
tensors are stored as in the model's file (`load_base_model`), and `on_device` and `wake` load them
into a network when it is needed. If the device is the CPU, offloading has to free RAM, so they are
stored in files.
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
    """Copy tensors into RAM in their stored dtypes, so that they no longer depend on their file."""
    return {name: LazyTensor.of(tensor.read_as(tensor.dtype)) for name, tensor in tensors.items()}


def keep_in_file(tensors: Tensors, file: Path, advance: Advance | None = None) -> Tensors:
    """Copy tensors into a separate file, which need not survive a crash of the system.

    Args:
        tensors: Tensors by name.
        file: Target file; replaced if it exists.
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
    """Move a frozen network's tensors into a file, and return them as lazy tensors of that file.

    `on_device` loads them into the network again for a while.

    Args:
        module: The network.
        file: File that the tensors are written to.
        stored: Dtypes in which the tensors were stored originally, by name: a tensor that can be
            converted to its own without loss is written in it, to write fewer bytes.

    Raises:
        StorageError: The file cannot be written; the network is unchanged.
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
    """Return the tensor in its stored dtype if that is narrower and lossless, else unchanged."""
    lazy = LazyTensor.of(tensor)
    if stored.itemsize >= tensor.dtype.itemsize or not stored.is_floating_point:
        return lazy
    is_same = torch.equal(tensor.to(stored).to(tensor.dtype), tensor)
    return lazy.cast(stored) if is_same else lazy


def is_waiting(module: nn.Module) -> bool:
    """Return whether a network is offloaded: without values, with its tensors stored elsewhere."""
    first: Any = next(module.parameters())
    return first.device == META and hasattr(module, "offloaded_tensors")


def wait_again(module: nn.Module) -> bool:
    """Offload a network again; return False if it was never offloaded, and leave it unchanged.

    Its values are dropped, not written: only frozen networks are offloaded, so the stored ones are
    still right.
    """
    if not hasattr(module, "offloaded_tensors"):
        return False
    module.to(META)
    return True


def weights_of(module: nn.Module) -> Mapping[str, Tensor | LazyTensor]:
    """Return the tensors of a network's state by name; lazy ones, in its dtype, if offloaded."""
    if not is_waiting(module):
        return module.state_dict()
    inside, waiting = module.state_dict(), _kept_by(module)
    first: Any = next(module.parameters())
    return {named_as_in(inside, name): tensor.cast(first.dtype) for name, tensor in waiting.items()}


def wake(module: nn.Module, device: torch.device) -> None:
    """Bring a network to a device, loading its tensors first if it is offloaded.

    Raises:
        ModelError: The file with its tensors is missing or was changed.
    """
    if is_waiting(module):
        first: Any = next(module.parameters())
        source = "a network offloaded to the run directory"
        dtype = kept_type if hasattr(module, "widens_in_layers") else first.dtype
        fill(module, _kept_by(module), source, _no_progress, dtype)
        materialise_buffers(module)
    module.to(device)


def wake_for_good(module: nn.Module, device: torch.device) -> None:
    """Bring an offloaded network to a device and drop its stored tensors.

    The mapping of those tensors now reads from the network, for callers that hold it.
    """
    kept = _kept_by(module)
    wake(module, device)
    kept.clear()
    kept.update(tensors_of(module))
    del module.offloaded_tensors


def keep_stored_types(module: nn.Module) -> None:
    """Have an offloaded network hold its weights in their stored dtypes, with unchanged results.

    See `models/networks/widening.py`; a network with layers of unsupported types is loaded in
    float32.
    """
    if widen_in_layers(module):
        waiting: Any = module
        waiting.widens_in_layers = True


@contextlib.contextmanager
def on_device(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Have a network on a device within the block; then move it back, or offload it again.

    Raises:
        ModelError: The file with its tensors is missing or was changed.
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
    """Ignore progress: the load is short."""
