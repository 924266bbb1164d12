"""Weights that are pulled towards those that they began with, step by step (L2-SP).

Li, Grandvalet and Davoine 2018 (arXiv:1802.01483) add alpha / 2 |w - w_0|^2 to the loss. An
optimizer that divides by its running mean of squared gradients would divide the gradient of that
too, so that the weights which matter most are held least; so the pull is taken out of the gradient,
as Loshchilov and Hutter 2019 (arXiv:1711.05101) do with the pull to 0: w - w_0 is multiplied by
1 - lr * fraction after each step, which is never below 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class StartPull:
    """Pulls what an optimizer steps towards its values of now, after each of its steps.

    A step that the optimizer passes over pulls nothing: one that overflows, one after a fault, and
    that of a weight without a gradient, which does not learn just now.

    Args:
        optimizer: Its parameters have the values to pull to; a copy of them is kept beside them.
        fraction: What part of the distance is taken away per unit of learning rate.
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
