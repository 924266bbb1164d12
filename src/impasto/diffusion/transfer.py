"""Copies tensors from RAM to a device without waiting."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on a device; copies to a GPU go through pinned memory and do not block.

    PyTorch keeps pinned memory alive until the copy has finished (`CachingHostAllocator`).
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
