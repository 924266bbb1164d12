"""Kernels that compute attention: PyTorch's fused ones, or xformers' if selected."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from impasto.errors import ConfigError, MissingDependencyError
from impasto.invocation import install_packages

AttentionName = Literal["sdpa", "xformers"]
Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Query, key and value `[B, heads, N, d]` and a mask or None -> `[B, heads, N, d]`."""


def sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Compute attention by PyTorch's kernels: flash attention if device and dtypes allow it."""
    return scaled_dot_product_attention(query, key, value, attn_mask=mask)


def build_kernel(name: AttentionName, device: torch.device) -> Kernel:
    """Return the attention kernel with this name.

    Raises:
        ConfigError: xformers is selected, and the device is not a GPU.
        MissingDependencyError: xformers is not installed.
    """
    if name == "sdpa":
        return sdpa
    if device.type != "cuda":
        raise ConfigError(
            "training.attention xformers computes on NVIDIA and AMD GPUs only, and this run has "
            "none. Set it to sdpa."
        )
    try:
        efficient = importlib.import_module("xformers.ops").memory_efficient_attention
    except ImportError as error:
        raise MissingDependencyError(
            f"training.attention is xformers, which is not installed ({error}). Install it with: "
            f"{install_packages('xformers')}\n"
            f"Or use sdpa, PyTorch's own attention, which has been as fast since 2023."
        ) from error

    def by_xformers(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        swapped = (tensor.transpose(1, 2) for tensor in (query, key, value))
        output: Tensor = efficient(*swapped, attn_bias=mask)
        return output.transpose(1, 2)

    return by_xformers
