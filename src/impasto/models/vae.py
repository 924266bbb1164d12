"""The VAE as two functions: pixels to moments for the cache, latents to pixels for samples."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from impasto.data.encoding import MomentsEncoder


def moments_encoder(vae: Any, *, batch_size: int) -> MomentsEncoder:
    """The VAE's encoder as the latent cache takes it; it runs where the VAE is, in its precision.

    A VAE in half precision overflows on some pictures (stabilityai's for SDXL is known for it); for
    those it is brought to float32 for one call.
    """

    @torch.no_grad()
    def encode(
        pixels: Float[Tensor, "b 3 height width"],
    ) -> tuple[Float[Tensor, "b 4 h w"], Float[Tensor, "b 4 h w"]]:
        device, dtype = vae.device, vae.dtype
        posterior = vae.encode(pixels.to(device, dtype)).latent_dist
        return posterior.mean, posterior.logvar

    def encode_exactly(
        pixels: Float[Tensor, "b 3 height width"],
    ) -> tuple[Float[Tensor, "b 4 h w"], Float[Tensor, "b 4 h w"]]:
        dtype = vae.dtype
        vae.float()
        try:
            return encode(pixels)
        finally:
            vae.to(dtype)

    exactly = None if vae.dtype == torch.float32 else encode_exactly
    return MomentsEncoder(encode, weights_fingerprint(vae), batch_size, exactly)


@torch.no_grad()
def decode(
    vae: Any, latents: Float[Tensor, "b 4 h w"], scaling_factor: float
) -> Float[Tensor, "b 3 height width"]:
    """Scaled latents -> pixels in [0, 1]."""
    images = vae.decode((latents / scaling_factor).to(vae.dtype)).sample
    return (images.float() / 2 + 0.5).clamp(0, 1)  # type: ignore[no-any-return]


def weights_fingerprint(module: nn.Module) -> str:
    """SHA-256 over names, types and bytes of all tensors, in order of their names."""
    return tensors_fingerprint(module.state_dict())


def tensors_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """The same of tensors that a module had."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
