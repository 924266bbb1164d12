"""From RAM to a device without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; to a GPU by way of pinned memory, so that nothing waits.

    PyTorch keeps pinned memory until the copy is done (`CachingHostAllocator`).
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
