"""Frozen text encoders whose weights stay in the type they are stored in, and compute in float32.

Nearly all models are stored in 16 bits. A float32 holds each of their numbers exactly, so a layer
that widens its own weights while it computes gives what it would give if all had been widened at
once, bit for bit, and the encoder takes half the memory: 1.5 GiB for both of SDXL in the place of
3.0. Other programs compute in 16 bits for that (`text_encoder1.to(weight_dtype)` in sd-scripts'
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
    """Have each layer of a network widen its own weights; whether all of them can.

    A network with a layer of another sort is left as it is.
    """
    layers = [module for module in network.modules() if list(module.parameters(recurse=False))]
    if not all(type(layer) in _FORWARDS for layer in layers):
        return False
    for layer in layers:
        compute: Any = partial(_FORWARDS[type(layer)], layer)
        layer.forward = compute
    return True


def kept_type(stored: torch.dtype) -> torch.dtype:
    """What such a network keeps of what is stored in a type: that, unless it is wider."""
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
"""What CLIP's text encoders have weights in, and how it computes."""
