"""A linear layer that computes in float8 in training mode, and torchao's products for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

ALIGNMENT = 16
"""Each dimension of a float8 product must be a multiple of this (`torch._scaled_mm`)."""

Product = Callable[[Tensor, Tensor], Tensor]
"""Rows `[M, K]` and a weight `[N, K]` -> `[M, N]`, with gradients for both."""


class Float8Linear(nn.Linear):
    """A linear layer whose products are in float8 in training mode, and ordinary in eval mode.

    `[..., in_features]` -> `[..., out_features]`. The gradient of the weight is a product over all
    rows of a batch, whose number must be a multiple of 16 too: otherwise rows of zeros are added,
    which change no sum and no scale.

    Args:
        layer: The layer to replace; its parameters are used, as the same objects.
        product: Computes the product in float8.
    """

    def __init__(self, layer: nn.Linear, product: Product) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self._product = product
        self.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        """Return the layer's output, in the autocast dtype where autocast is on."""
        if not self.training:
            return nn.functional.linear(input, self.weight, self.bias)
        kind = input.device.type
        if torch.is_autocast_enabled(kind):
            input = input.to(torch.get_autocast_dtype(kind))
        rows = input.reshape(-1, self.in_features)
        missing = -len(rows) % ALIGNMENT
        filled = nn.functional.pad(rows, (0, 0, 0, missing)) if missing else rows
        output = self._product(filled, self.weight)[: len(rows)]
        output = output.reshape(*input.shape[:-1], self.out_features)
        return output if self.bias is None else output + self.bias.to(output.dtype)


def torchao_product(*, emulated: bool = False) -> Product:
    """Return torchao's float8 product, with dynamic scales per tensor.

    Args:
        emulated: Whether to compute in float32 on numbers rounded to float8, which works on any
            device.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    from torchao.float8.float8_linear import matmul_with_hp_or_float8_args

    # this also makes torch.compile avoid a Triton bug that corrupts float8 (triton #11111)
    made: Any = convert_to_float8_training(
        nn.Linear(ALIGNMENT, ALIGNMENT, device="meta"), config=Float8LinearConfig(emulate=emulated)
    )
    products, config = made.linear_mm_config, made.config

    def product(rows: Tensor, weight: Tensor) -> Tensor:
        output: Tensor = matmul_with_hp_or_float8_args.apply(rows, weight.t(), products, config)
        return output

    return product
