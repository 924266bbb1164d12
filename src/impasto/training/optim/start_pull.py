"""Decay of the weights towards their initial values (L2-SP).

Li, Grandvalet and Davoine 2018 (arXiv:1802.01483) add alpha / 2 |w - w_0|^2 to the loss. An
optimizer that divides by its running mean of squared gradients would divide the gradient of that
term too, so that the most important weights would be held back least; so the decay is decoupled
from the gradient, as Loshchilov and Hutter 2019 (arXiv:1711.05101) do with weight decay to 0:
w - w_0 is multiplied by 1 - lr * fraction, at least 0, after each step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class StartPull:
    """Pulls an optimizer's parameters towards their current values, after each later step.

    Skipped steps pull nothing: steps that overflow or follow a non-finite one. Neither are weights
    without a gradient pulled, which are not trained at the moment.

    Args:
        optimizer: The optimizer; its parameters are copied as the values to pull to.
        fraction: The fraction of the distance that is removed per unit of learning rate.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, fraction: float) -> None:
        self._fraction = fraction
        self._start: dict[Tensor, Tensor] = {
            parameter: parameter.detach().clone()
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        optimizer.register_step_post_hook(self._pull)

    @torch.no_grad()
    def _pull(self, optimizer: torch.optim.Optimizer, _args: Any, _options: Any) -> None:
        passed_over = getattr(optimizer, "found_inf", None)
        for group in optimizer.param_groups:
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            starts = [self._start[parameter] for parameter in moved]
            if not moved:
                continue
            fraction = min(1.0, float(group["lr"]) * self._fraction)
            if passed_over is None:
                torch._foreach_lerp_(moved, starts, fraction)
                continue
            applied = fraction * (passed_over == 0).to(torch.float32)
            for parameter, start in zip(moved, starts, strict=True):
                parameter.lerp_(start, applied.to(parameter.device))
