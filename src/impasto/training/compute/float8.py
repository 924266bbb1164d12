"""Matrix products of the U-Net's large linear layers in float8, by torchao.

Weights stay the same parameters under the same names, in float32 or bfloat16. In training mode, a
layer's input, weight and gradient are scaled to the range of float8, each tensor as a whole and
dynamically (torchao's "tensorwise" recipe), and rounded; the three products are computed from
these. Validation and previews multiply without float8. Micikevicius et al. 2022 (arXiv:2209.05433)
is the source of the formats: e4m3 for inputs and weights, e5m2 for gradients.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import nn

from impasto.errors import ConfigError
from impasto.invocation import missing_extra
from impasto.training.compute.float8_linear import ALIGNMENT, Float8Linear, Product, torchao_product

CAPABILITY = (8, 9)
"""Lowest compute capability with float8 products: Ada (RTX 40xx, L4); then Hopper, Blackwell."""

SMALL_OUTPUT, SMALL_INPUT = 1024, 4096
"""A layer with no more outputs and no more inputs than these loses more time to scaling than its
products gain: `_auto_filter_for_tensorwise` of torchao 0.18, measured on an H100."""

_BLOCK = "BasicTransformerBlock"
_OF_TEXT = ("attn2.to_k", "attn2.to_v")
"""Layers of a block whose input is text embeddings: 77 rows per image, too few to gain."""


def float8_layers(unet: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers to compute in float8, by name, converted already or not.

    These are the attention projections and feed-forward layers of transformer blocks that are large
    enough. Layers with one row per image (time embeddings) or per text token are left out, and so
    are the two projections around the blocks, which `training.compile = "blocks"` does not compile.
    """
    return {
        f"{block}.{name}": layer
        for block, module in unet.named_modules()
        if type(module).__name__ == _BLOCK
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and name not in _OF_TEXT and _gains(layer)
    }


def _gains(layer: nn.Linear) -> bool:
    sides = (layer.in_features, layer.out_features)
    if any(side % ALIGNMENT for side in sides):
        return False
    return layer.out_features > SMALL_OUTPUT or layer.in_features > SMALL_INPUT


def convert_layers(unet: nn.Module, product: Product) -> None:
    """Replace the layers of `float8_layers` by ones that use `product` on the same parameters."""
    for name, layer in float8_layers(unet).items():
        parent, _, own = name.rpartition(".")
        setattr(unet.get_submodule(parent), own, Float8Linear(layer, product))


def use_float8(unet: nn.Module, device: torch.device) -> None:
    """Make the large linear layers of a U-Net compute in float8 in training mode.

    Args:
        unet: diffusers' UNet2DConditionModel; its parameters and their names stay the same.
        device: The device that it computes on.

    Raises:
        ConfigError: The device has no float8 products, or no layer is large enough to gain.
        MissingDependencyError: torchao is not installed.
    """
    require_float8(device)
    if not float8_layers(unet):
        raise ConfigError(
            f"training.float8 has no effect on this U-Net: none of its linear layers has over "
            f"{SMALL_OUTPUT} outputs or {SMALL_INPUT} inputs, below which float8 is slower than "
            f"bf16. Remove it."
        )
    convert_layers(unet, torchao_product())


def require_float8(device: torch.device) -> None:
    """Check that a device supports float8 products, and that torchao is installed.

    Raises:
        ConfigError: The device does not support them.
        MissingDependencyError: torchao is not installed.
    """
    _require_card(device)
    if importlib.util.find_spec("torchao") is None:
        raise missing_extra(
            "float8",
            "training.float8 is computed by torchao, which is not installed.",
            "Or set training.float8 = false.",
        )


def has_float8(device: torch.device) -> bool:
    """Return whether a device is an NVIDIA card with float8 products."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= CAPABILITY


def _require_card(device: torch.device) -> None:
    if has_float8(device):
        return
    needed = "training.float8 needs an NVIDIA card of compute capability 8.9 or later (RTX 40xx)"
    if device.type != "cuda":
        raise ConfigError(f"{needed}, and this run has none. Set it to false.")
    name = torch.cuda.get_device_name(device)
    if torch.version.hip is not None:
        raise ConfigError(f"{needed}; {name} is an AMD card. Set it to false.")
    major, minor = torch.cuda.get_device_capability(device)
    raise ConfigError(f"{needed}; {name} has {major}.{minor}. Set it to false.")
