"""A U-Net in channels-last memory order, without what PyTorch cannot compute in that order.

On a CPU, the backward pass of a group norm that learns ends the process by a segmentation fault if
its input is in that order and needs no gradient (seen with PyTorch 2.13). Such are norms behind
layers that are frozen: the first one where `conv_in` is, and those of the way up where all of the
way down is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from impasto.training.optim.chunked import put_back


def use_channels_last(unet: nn.Module, device: torch.device) -> None:
    """Keep a U-Net's convolutions in channels-last order.

    Args:
        unet: The U-Net, with what is frozen of it frozen.
        device: Where it will compute.
    """
    unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if device.type != "cpu":
        return
    for module in unet.modules():
        if isinstance(module, nn.GroupNorm) and _learns(module):
            module.register_forward_pre_hook(_in_usual_order)


def keep_order(optimizer: torch.optim.Optimizer) -> None:
    """Have a step leave weights in their order in memory, and in their place.

    bitsandbytes makes each contiguous for its kernels, and would leave it so: from the second step
    on the network would compute in the usual order.

    Args:
        optimizer: It; those of other libraries keep to the order by themselves, as one does that
            goes chunk by chunk.
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
    """The input of a group norm that learns in the usual order, if it needs no gradient itself."""
    (values,) = inputs
    if values.requires_grad or not torch.is_grad_enabled():
        return None
    return (values.contiguous(),)
