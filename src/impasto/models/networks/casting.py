"""Converts networks to another floating-point type."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

N = TypeVar("N", bound=nn.Module)


def cast_network(network: N, dtype: torch.dtype) -> N:
    """Convert all weights of a network to a dtype in place, and return the network.

    Uses PyTorch's own `to`: that of diffusers warns of modules that should stay in float32 even for
    networks that have none.
    """
    return nn.Module.to(network, dtype)
