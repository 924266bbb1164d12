"""Attention in float32 where float16 would overflow, without giving up fused kernels.

SD 2.1's queries and keys make products beyond 65,504. Of diffusers' processors only the one that
keeps the whole attention matrix computes them in float32; the fused one ignores `upcast_attention`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class UpcastAttention:
    """diffusers' attention processor for modules of SD 2.x: float16 is raised to float32.

    bfloat16 has float32's range and stays as it is, and so does float32.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """Attention over `[B, N, C]`, to the context `[B, M, D]` or to itself."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        wide = query.dtype
        if wide == torch.float16:
            query, key, value = query.float(), key.float(), value.float()
        with torch.autocast(query.device.type, enabled=False):
            output = scaled_dot_product_attention(
                _by_heads(query, attn.heads),
                _by_heads(key, attn.heads),
                _by_heads(value, attn.heads),
                attn_mask=attention_mask,
            )
        output = output.transpose(1, 2).flatten(2).to(wide)
        return attn.to_out[1](attn.to_out[0](output))  # type: ignore[no-any-return]


def use_upcast_attention(unet: nn.Module) -> None:
    """Have a U-Net's attention computed by `UpcastAttention`."""
    unet.set_attn_processor(UpcastAttention())  # type: ignore[operator]


def _by_heads(tensor: Tensor, heads: int) -> Tensor:
    """`[B, N, C]` -> `[B, heads, N, C / heads]`."""
    batch, positions, width = tensor.shape
    return tensor.view(batch, positions, heads, width // heads).transpose(1, 2)
