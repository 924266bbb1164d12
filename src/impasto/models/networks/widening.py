"""Frozen text encoders whose weights stay in the dtype they are stored in, and compute in float32.

Nearly all models are stored in 16 bits. A float32 represents each of their values exactly, so a
layer that converts its own weights while it computes gives the same result, bit for bit, as if all
had been converted at once, and the encoder takes half the memory: 1.5 GiB for both of SDXL instead
of 3.0. Other programs compute in 16 bits for that (`text_encoder1.to(weight_dtype)` in sd-scripts'
`sdxl_train.py`), which changes the states by 1.5 % in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDE = torch.float32


def widen_in_layers(network: nn.Module) -> bool:
    """Have each layer of a network convert its own weights to float32; return whether all can.

    A network with a layer of an unsupported type is left unchanged.
    """
    layers = [module for module in network.modules() if list(module.parameters(recurse=False))]
    if not all(type(layer) in _FORWARDS for layer in layers):
        return False
    for layer in layers:
        compute: Any = partial(_FORWARDS[type(layer)], layer)
        layer.forward = compute
    return True


def kept_type(stored: torch.dtype) -> torch.dtype:
    """Return the dtype in which such a network holds a tensor: its stored one, at most float32."""
    is_narrow = stored.is_floating_point and stored.itemsize < WIDE.itemsize
    return stored if is_narrow else WIDE


def _linear(layer: nn.Linear, values: Tensor) -> Tensor:
    return functional.linear(values, _wide(layer.weight), _wide_or_none(layer.bias))


def _layer_norm(layer: nn.LayerNorm, values: Tensor) -> Tensor:
    weight, bias = _wide_or_none(layer.weight), _wide_or_none(layer.bias)
    return functional.layer_norm(values, layer.normalized_shape, weight, bias, layer.eps)


def _embedding(layer: nn.Embedding, ids: Tensor) -> Tensor:
    return _wide(functional.embedding(ids, layer.weight))


def _wide(values: Tensor) -> Tensor:
    return values.to(WIDE)


def _wide_or_none(values: Tensor | None) -> Tensor | None:
    return None if values is None else _wide(values)


_FORWARDS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Linear: _linear,
    nn.LayerNorm: _layer_norm,
    nn.Embedding: _embedding,
}
"""Types of the layers with weights in CLIP's text encoders -> the function that computes each."""
