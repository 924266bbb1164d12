"""Float8 products of tensors without values, with the memory of compiled ones.

torchao's products, run without compilation, would hold tensors that compiled kernels never
materialize: absolute values and widened intermediates. Saved for the backward pass are the 16-bit
input and the weight itself; during each product, both operands exist in 8 bits. A float32 weight
has no 16-bit copy, which is the memory that float8 saves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def fake_product(rows: Tensor, weight: Tensor) -> Tensor:
    """Multiply rows `[M, K]` by a weight `[N, K]` to `[M, N]`, with float8's memory and operations.

    The values are meaningless: both scales are 1.
    """
    output: Tensor = _Product.apply(rows, weight)  # type: ignore[no-untyped-call]
    return output


class _Product(torch.autograd.Function):
    """The three matrix products of a linear layer: one forward and two backward."""

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
    """Return the float8 product `[M, N]` of `[M, K]` and `[N, K]`."""
    scale = torch.ones((), device=one.device)
    left, right = (side.to(torch.float8_e4m3fn).contiguous() for side in (one, other))
    return torch._scaled_mm(left, right.t(), scale, scale, out_dtype=dtype)
