"""What a U-Net is told of a batch besides noisy latents and timesteps, as one object."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from impasto.diffusion.transfer import to_device

Arguments = Mapping[str, "Tensor | Arguments"]
"""Names -> tensors of a batch, or more of the same; each tensor's first dimension is the batch."""


@dataclass(frozen=True)
class Conditioning:
    """Keyword arguments of a U-Net of diffusers: `unet(x_t, t, **conditioning.arguments)`.

    Attributes:
        arguments: Tensors by name, nested where the U-Net takes them nested (`added_cond_kwargs`).
            The first dimension of each is the batch.
    """

    arguments: Arguments

    def tensors(self) -> Iterator[Tensor]:
        """All tensors, those of nested mappings among them."""
        return _leaves(self.arguments)

    def map(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        """Apply a function to every tensor."""
        return Conditioning(_mapped(self.arguments, change))

    def to(self, device: torch.device) -> Conditioning:
        """Move every tensor to a device, without waiting for a GPU."""
        return self.map(lambda tensor: to_device(tensor, device))

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keep the memory from being given away before what `stream` has to do with it is done."""
        for tensor in self.tensors():
            tensor.record_stream(stream)

    def __len__(self) -> int:
        """The size of the batch."""
        return len(next(self.tensors()))

    def __getitem__(self, rows: slice) -> Conditioning:
        """Some samples of the batch."""
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
