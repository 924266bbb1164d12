"""The inputs of a U-Net for a batch, except noisy latents and timesteps, as one object."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from impasto.diffusion.transfer import to_device

Arguments = Mapping[str, "Tensor | Arguments"]
"""Names -> tensors of a batch, or nested mappings; each tensor's first dimension is the batch."""


@dataclass(frozen=True)
class Conditioning:
    """Keyword arguments of diffusers' U-Net: `unet(x_t, t, **conditioning.arguments)`.

    Attributes:
        arguments: Tensors by name, nested where the U-Net takes them nested (`added_cond_kwargs`).
            The first dimension of each is the batch.
    """

    arguments: Arguments

    def tensors(self) -> Iterator[Tensor]:
        """Yield all tensors, including those of nested mappings."""
        return _leaves(self.arguments)

    def map(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        """Return a conditioning with a function applied to every tensor."""
        return Conditioning(_mapped(self.arguments, change))

    def to(self, device: torch.device) -> Conditioning:
        """Return the conditioning with every tensor on a device, without waiting for a GPU."""
        return self.map(lambda tensor: to_device(tensor, device))

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keep the tensors' memory from being reused before `stream` has finished using it."""
        for tensor in self.tensors():
            tensor.record_stream(stream)

    def __len__(self) -> int:
        """Return the size of the batch."""
        return len(next(self.tensors()))

    def __getitem__(self, rows: slice) -> Conditioning:
        """Return a slice of the samples of the batch."""
        return self.map(lambda tensor: tensor[rows])


def _leaves(arguments: Arguments) -> Iterator[Tensor]:
    for value in arguments.values():
        if isinstance(value, Tensor):
            yield value
        else:
            yield from _leaves(value)


def _mapped(arguments: Arguments, change: Callable[[Tensor], Tensor]) -> Arguments:
    return {
        name: change(value) if isinstance(value, Tensor) else _mapped(value, change)
        for name, value in arguments.items()
    }
