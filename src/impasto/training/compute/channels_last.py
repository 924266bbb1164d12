"""Channels-last memory format for a U-Net, with a workaround for a crash in PyTorch.

On a CPU, the backward pass of a trained group norm crashes with a segmentation fault if its input
is channels-last and needs no gradient (seen with PyTorch 2.13). That happens behind frozen layers:
to the first norm if `conv_in` is frozen, and to norms of the up blocks if all down blocks are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from impasto.training.optim.chunked import put_back


def use_channels_last(unet: nn.Module, device: torch.device) -> None:
    """Convert a U-Net's convolutions to the channels-last memory format.

    Args:
        unet: The U-Net, whose frozen parameters must already have `requires_grad` off.
        device: The device that it will compute on.
    """
    unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if device.type != "cpu":
        return
    for module in unet.modules():
        if isinstance(module, nn.GroupNorm) and _learns(module):
            module.register_forward_pre_hook(_in_usual_order)


def keep_order(optimizer: torch.optim.Optimizer) -> None:
    """Make a bitsandbytes optimizer preserve the memory format and storage of weights.

    bitsandbytes makes each weight contiguous for its kernels, and leaves it so: from the second
    step on the network would compute in the usual memory format.

    Args:
        optimizer: The optimizer; those of other libraries and `ChunkedOptimizer` preserve the
            format themselves, and are left alone.
    """
    if not type(optimizer).__module__.startswith("bitsandbytes."):
        return
    update: Callable[..., None] = optimizer.update_step  # type: ignore[attr-defined]

    def update_in_place(group: dict[str, Any], parameter: Tensor, *numbers: int) -> None:
        storage = parameter.data
        update(group, parameter, *numbers)
        put_back(parameter, storage)

    optimizer.update_step = update_in_place  # type: ignore[attr-defined]


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _in_usual_order(_norm: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
    """Return a trained group norm's input made contiguous if it needs no gradient, else None.

    A forward pre-hook: None leaves the input unchanged.
    """
    (values,) = inputs
    if values.requires_grad or not torch.is_grad_enabled():
        return None
    return (values.contiguous(),)
