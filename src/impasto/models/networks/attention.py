"""Attention processors: float32 where float16 would overflow, and contexts that are changed.

SD 2.1's queries and keys make products beyond 65,504. Of diffusers' processors only the one that
keeps the whole attention matrix computes them in float32; the fused one ignores `upcast_attention`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from impasto.models.networks.attention_kernels import Kernel, sdpa

Contexts = Callable[[Tensor], tuple[Tensor, Tensor]]
"""What is attended to -> what keys are made of, and what values are made of."""


class FusedAttention:
    """diffusers' attention processor for the modules of SD 1 and 2, on fused kernels.

    Args:
        upcast: Whether float16 is raised to float32. bfloat16 has float32's range and stays as it
            is, and so does float32.
        contexts: Changes what keys and values are made of; None leaves it.
        kernel: What computes it.
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
        """Attention over `[B, N, C]`, to the context `[B, M, D]` or to itself."""
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
    """Have a U-Net's attention computed by a kernel; float32 stays where it is needed."""
    unet.set_attn_processor(
        {
            name: FusedAttention(upcast=getattr(processor, "upcast", False), kernel=kernel)
            for name, processor in unet.attn_processors.items()
        }
    )


def _by_heads(tensor: Tensor, heads: int) -> Tensor:
    """`[B, N, C]` -> `[B, heads, N, C / heads]`."""
    batch, positions, width = tensor.shape
    return tensor.view(batch, positions, heads, width // heads).transpose(1, 2)
