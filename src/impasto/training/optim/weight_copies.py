"""16-bit copies of float32 weights for matrix products, made once per step.

Autocast makes such copies one by one in every forward pass, and widens their gradients one by one:
some 900 kernels for a full-size U-Net, which a fast GPU runs faster than they can be launched. Here
some forty kernels make all copies before a step, and as many widen all gradients after each
backward pass. Each number is rounded and added up as autocast does it. Text encoders are left to
autocast.
"""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterable, Iterator

import torch
from torch import Tensor, nn

from impasto.training.optim.chunked import chunks_of

CAST_BY_AUTOCAST = (nn.Conv2d, nn.Linear)
"""The layer types of a U-Net that autocast computes in 16 bits; norms stay in float32."""


def layers_to_copy(
    network: nn.Module, besides: Container[nn.Module] = ()
) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Yield module, parameter name and parameter of all trained weights that autocast would cast.

    Args:
        network: The network to search.
        besides: Modules to leave out, whose weights autocast does not cast.
    """
    for module in network.modules():
        if isinstance(module, CAST_BY_AUTOCAST) and module not in besides:
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.requires_grad:
                    yield module, name, parameter


class WeightCopies:
    """16-bit copies that replace weights during forward and backward passes.

    Args:
        layers: Module, parameter name and weight of each copy; without any, nothing is replaced.
        dtype: The dtype of the copies.
    """

    def __init__(
        self, layers: Iterable[tuple[nn.Module, str, nn.Parameter]], dtype: torch.dtype
    ) -> None:
        self._buffers = [
            (module, name, weight, nn.Parameter(torch.empty_like(weight, dtype=dtype)))
            for module, name, weight in layers
        ]
        copy_of: dict[Tensor, Tensor] = {weight: copy for _, _, weight, copy in self._buffers}
        self._slices = [
            (weights, [copy_of[weight] for weight in weights])
            for weights in chunks_of(list(copy_of))
        ]

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the current values of the weights."""
        for weights, copies in self._slices:
            torch._foreach_copy_(copies, weights)

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Replace the weights by their copies within the context.

        At its end the copies' gradients are added to the weights', unless an error was raised.
        """
        for module, name, _, copy in self._buffers:
            module._parameters[name] = copy
        try:
            yield
            self._accumulate_gradients()
        finally:
            for module, name, weight, copy in self._buffers:
                module._parameters[name] = weight
                copy.grad = None

    @torch.no_grad()
    def _accumulate_gradients(self) -> None:
        """Add the copies' gradients to those of the weights, a slice at a time to save memory."""
        for weights, copies in self._slices:
            pairs = [(w, c) for w, c in zip(weights, copies, strict=True) if c.grad is not None]
            if not pairs:
                continue
            wide = [torch.empty_like(weight) for weight, _ in pairs]
            torch._foreach_copy_(wide, [c.grad for _, c in pairs if c.grad is not None])
            kept, added = [], []
            for (weight, _), gradient in zip(pairs, wide, strict=True):
                if weight.grad is None:
                    weight.grad = gradient
                else:
                    kept.append(weight.grad)
                    added.append(gradient)
            if kept:
                torch._foreach_add_(kept, added)
            for _, copy in pairs:
                copy.grad = None
