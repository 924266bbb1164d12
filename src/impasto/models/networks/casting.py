"""Networks in another floating-point type."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

N = TypeVar("N", bound=nn.Module)


def cast_network(network: N, dtype: torch.dtype) -> N:
    """Bring all weights to a type, and give the network back.

    By PyTorch's own `to`: that of diffusers warns of modules that should stay in float32 even of
    networks that have none.
    """
    return nn.Module.to(network, dtype)
