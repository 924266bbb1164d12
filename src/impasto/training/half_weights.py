"""Any library's optimizer over weights of 16 bits, without a float32 copy of them.

A step goes through the weights in chunks: one is widened to float32 with its gradient, stepped by
an optimizer of its own, and rounded back. The optimizer's state stays in its own precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from impasto.training.rounding import Rounding

CHUNK = 16 << 20  # weights that are in float32 at a time, unless one tensor has more

BuildInner = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


class HalfWeightOptimizer(torch.optim.Optimizer):
    """Steps 16-bit weights through float32, chunk by chunk.

    Its groups are those of the chunks' optimizers, and its state is theirs, so that both can be
    saved and set as of any optimizer. Gradients may be scaled (`torch.amp.GradScaler`), and are
    scaled down to a limit in float32 (`clip`): in 16 bits either would round them.

    Args:
        groups: `params` and `lr`, as for any optimizer.
        build: Makes the optimizer of a chunk from such groups; it has to look at each weight alone.
        rounding: How weights come back to 16 bits.
        chunk: Weights per chunk.
    """

    _step_supports_amp_scaling = True
    grad_scale: Tensor | None
    found_inf: Tensor | None

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        build: BuildInner,
        rounding: Rounding,
        chunk: int = CHUNK,
    ) -> None:
        super().__init__([{**group, "params": list(group["params"])} for group in groups], {})
        self._rounding = rounding
        self._factor: Tensor | None = None
        self._inner = [
            build([{**group, "params": members}])
            for group in self.param_groups
            for members in _chunks(group["params"], chunk)
        ]
        for optimizer in self._inner:
            optimizer.state = self.state
        self.param_groups = [g for optimizer in self._inner for g in optimizer.param_groups]

    def clip(self, limit: float, scale: float = 1.0) -> Tensor:
        """Have the next step bring the gradient's norm down to `limit`, and return the norm.

        Args:
            limit: The largest norm.
            scale: What the gradients are larger by than they should be.
        """
        norms = [
            torch.linalg.vector_norm(p.grad, dtype=torch.float32)
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        norm: Tensor = torch.linalg.vector_norm(torch.stack(norms)) / scale
        self._factor = (limit / (norm + 1e-6)).clamp(max=1.0)
        return norm

    def begin(self, seed: int) -> None:
        """Start an update; see `Rounding.begin`."""
        self._rounding.begin(seed)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """One update, unless the gradient has overflown."""
        found_inf = getattr(self, "found_inf", None)
        on_device = bool(self.param_groups[0].get("fused"))
        if found_inf is not None and not on_device and bool(found_inf):
            return
        scale = getattr(self, "grad_scale", None)
        for optimizer in self._inner:
            if found_inf is not None and on_device:
                optimizer.found_inf, optimizer.grad_scale = found_inf, None  # type: ignore[attr-defined]
            self._step_chunk(optimizer, scale)
        self._factor = None

    def _step_chunk(self, optimizer: torch.optim.Optimizer, scale: Tensor | None) -> None:
        learning = [
            p for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        narrow = [(p.data, p.grad) for p in learning]
        for p, (weight, grad) in zip(learning, narrow, strict=True):
            p.grad = None
            p.data = self._rounding.widened(weight, self.state.get(p, {}))
            p.grad = self._true_size(grad.float(), scale)
        optimizer.step()
        for p, (weight, _) in zip(learning, narrow, strict=True):
            p.grad = None
            weight.copy_(self._rounding.narrowed(p.data, weight.dtype, self.state[p]))
            p.data = weight

    def _true_size(self, grad: Tensor, scale: Tensor | None) -> Tensor:
        if scale is not None:
            grad = grad / scale
        return grad if self._factor is None else grad * self._factor


def _chunks(parameters: Sequence[Tensor], limit: int) -> Iterator[list[Tensor]]:
    members: list[Tensor] = []
    held = 0
    for parameter in parameters:
        if members and held + parameter.numel() > limit:
            yield members
            members, held = [], 0
        members.append(parameter)
        held += parameter.numel()
    if members:
        yield members
