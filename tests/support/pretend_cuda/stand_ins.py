"""Replacements for bitsandbytes' optimizers, whose kernels need a real GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

PAGES: list[Tensor] = []
"""Memory that paged optimizers allocated since the start of the current case."""


class EightBits(torch.optim.Optimizer):
    """Momentum stored in 8 bits, with one scale per tensor."""

    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._step(p, group["lr"])

    def _step(self, p: Tensor, lr: float) -> None:
        state = self.state[p]
        if not state:
            state["codes"] = torch.zeros_like(p, dtype=torch.int8)
            state["scale"] = torch.zeros((), device=p.device)
        momentum = 0.9 * state["codes"].float() * state["scale"] + p.grad
        scale = momentum.abs().max().clamp(min=1e-30) / 127
        state["codes"].copy_((momentum / scale).round())
        state["scale"].copy_(scale)
        p.sub_(state["codes"].float() * scale, alpha=lr)


class Paged(torch.optim.Optimizer):
    """Momentum in memory from `get_state_buffer`, as in bitsandbytes' paged optimizers.

    On the CPU, where it is tried before a run, it uses ordinary memory.
    """

    is_paged = True

    def __init__(self, params: Any, lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})

    def get_state_buffer(self, p: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        page = torch.zeros_like(p, dtype=dtype)
        if p.device.type != "cpu":
            PAGES.append(page)
        return page

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = self.get_state_buffer(p)
                is_page = any(state["momentum"] is page for page in PAGES)
                assert is_page or p.device.type == "cpu", "no page"
                state["momentum"].mul_(0.9).add_(p.grad)
                p.sub_(state["momentum"], alpha=group["lr"])
