"""Attention processors that compute in float32 where float16 would overflow, or change the context.

The products of SD 2.1's queries and keys exceed 65,504. Of diffusers' processors only the one that
stores the whole attention matrix computes them in float32; the fused one ignores
`upcast_attention`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from impasto.models.networks.attention_kernels import Kernel, sdpa

Contexts = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Context of the attention -> context for the keys, and context for the values."""


class FusedAttention:
    """diffusers' attention processor for the modules of SD 1 and 2, on fused kernels.

    Args:
        upcast: Whether float16 is converted to float32. bfloat16 has float32's range and is not
            converted.
        contexts: Changes the contexts of keys and values; None leaves them unchanged.
        kernel: Kernel that computes the attention.
    """

    def __init__(
        self, *, upcast: bool = False, contexts: Contexts | None = None, kernel: Kernel = sdpa
    ) -> None:
        self.upcast, self.kernel, self._contexts = upcast, kernel, contexts

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """Return the attention of `[B, N, C]` to a context `[B, M, D]`, or to itself if None."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        of_keys, of_values = (
            (context, context) if self._contexts is None else self._contexts(context)
        )
        query, key, value = attn.to_q(hidden_states), attn.to_k(of_keys), attn.to_v(of_values)
        wide = query.dtype
        if self.upcast and wide == torch.float16:
            query, key, value = query.float(), key.float(), value.float()
        with torch.autocast(query.device.type, enabled=False):
            output = self.kernel(
                _by_heads(query, attn.heads),
                _by_heads(key, attn.heads),
                _by_heads(value, attn.heads),
                attention_mask,
            )
        output = output.transpose(1, 2).flatten(2).to(wide)
        return attn.to_out[1](attn.to_out[0](output))  # type: ignore[no-any-return]


def use_upcast_attention(unet: nn.Module) -> None:
    """Have a U-Net's attention computed in float32 where it would overflow float16."""
    unet.set_attn_processor(FusedAttention(upcast=True))  # type: ignore[operator]


def use_kernel(unet: Any, kernel: Kernel) -> None:
    """Have a U-Net's attention computed by a kernel; processors that upcast to float32 still do."""
    unet.set_attn_processor(
        {
            name: FusedAttention(upcast=getattr(processor, "upcast", False), kernel=kernel)
            for name, processor in unet.attn_processors.items()
        }
    )


def _by_heads(tensor: Tensor, heads: int) -> Tensor:
    """Split the last dimension by heads: `[B, N, C]` -> `[B, heads, N, C / heads]`."""
    batch, positions, width = tensor.shape
    return tensor.view(batch, positions, heads, width // heads).transpose(1, 2)
