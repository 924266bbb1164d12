"""Float8 products of tensors without values, with the memory of compiled ones.

torchao's own, run as they are written, would hold what compiled kernels never write down: absolute
values, numbers widened on the way. What stays for the backward pass is the input in 16 bits and the
weight itself; of each product, both sides in 8 bits are there while it is computed. A weight in
float32 has no 16-bit copy, which is what float8 saves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def fake_product(rows: Tensor, weight: Tensor) -> Tensor:
    """Rows `[M, K]` and a weight `[N, K]` -> `[M, N]`: tensors and operations of float8."""
    output: Tensor = _Product.apply(rows, weight)  # type: ignore[no-untyped-call]
    return output


class _Product(torch.autograd.Function):
    """The three products of a layer, one forward and two backward."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return _multiplied(rows, weight, rows.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        rows, weight = ctx.saved_tensors
        (gradient,) = gradients
        of_rows = _multiplied(gradient, weight.t(), gradient.dtype)
        of_weight = _multiplied(gradient.t(), rows.t(), gradient.dtype)
        return of_rows, of_weight.to(weight.dtype)


def _multiplied(one: Tensor, other: Tensor, dtype: torch.dtype) -> Tensor:
    """`[M, K]` and `[N, K]` -> `[M, N]`."""
    scale = torch.ones((), device=one.device)
    left, right = (side.to(torch.float8_e4m3fn).contiguous() for side in (one, other))
    return torch._scaled_mm(left, right.t(), scale, scale, out_dtype=dtype)
