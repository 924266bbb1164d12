"""The VAE as two functions: pixels to moments for the cache, latents to pixels for samples."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from impasto.checkpoints.pieces import bytes_of
from impasto.checkpoints.tensors import LazyTensor
from impasto.data.caching.encoding import MomentsEncoder
from impasto.data.caching.npz import SD_ENDINGS
from impasto.data.records import CELL
from impasto.diffusion.transfer import to_device
from impasto.models.networks.casting import cast_network
from impasto.models.networks.offload import wake, weights_of

TILE = 512
"""Pixels of a tile's side; neighbours overlap by a quarter of it (diffusers' AutoencoderKL)."""


def tile(vae: Any, *, tiled: bool) -> None:
    """Have a VAE encode and decode larger images in overlapping tiles, or whole.

    A tile knows nothing of the rest of the image, so results differ a little from those of the
    whole.
    """
    vae.use_tiling = tiled
    vae.tile_sample_min_size, vae.tile_latent_min_size = TILE, TILE // CELL


@contextlib.contextmanager
def tiling(vae: Any, *, tiled: bool) -> Iterator[None]:
    """Have a VAE work in tiles meanwhile, if it does not anyhow."""
    before: bool = vae.use_tiling
    tile(vae, tiled=before or tiled)
    try:
        yield
    finally:
        tile(vae, tiled=before)


def moments_encoder(
    vae: Any,
    *,
    batch_size: int,
    device: torch.device | None = None,
    npz_endings: tuple[str, ...] = SD_ENDINGS,
    weights_hash: str | None = None,
) -> MomentsEncoder:
    """The VAE's encoder as the latent cache takes it; it computes in the VAE's precision.

    The VAE is hashed where it is or waits, and goes to the device when the first image is encoded:
    where all are encoded already, it never does.

    A VAE in half precision overflows on some images (stabilityai's for SDXL is known for it); for
    those it is brought to float32 for one call.

    Args:
        vae: diffusers' AutoencoderKL.
        batch_size: Images per call.
        device: Where it computes; None means where the VAE is.
        npz_endings: What names of sd-scripts' files of its latents end on.
        weights_hash: Its `weights_fingerprint`, where that is known.
    """
    home = device or vae.device

    @torch.no_grad()
    def encode(
        pixels: Float[Tensor, "b 3 height width"],
    ) -> tuple[Float[Tensor, "b 4 h w"], Float[Tensor, "b 4 h w"]]:
        if vae.device != home:
            wake(vae, home)
        posterior = vae.encode(to_device(pixels, home).to(vae.dtype)).latent_dist
        return posterior.mean, posterior.logvar

    def encode_exactly(
        pixels: Float[Tensor, "b 3 height width"],
    ) -> tuple[Float[Tensor, "b 4 h w"], Float[Tensor, "b 4 h w"]]:
        dtype = vae.dtype
        vae.float()
        try:
            return encode(pixels)
        finally:
            cast_network(vae, dtype)

    exactly = None if vae.dtype == torch.float32 else encode_exactly
    arithmetic = "tf32" if computes_in_tf32(home, vae.dtype) else ""
    return MomentsEncoder(
        encode,
        encoding_fingerprint(vae, weights_hash),
        batch_size,
        exactly,
        arithmetic,
        npz_endings,
        device_type=home.type,
    )


def computes_in_tf32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a network is computed from 10 bits of fraction: float32 on GPUs from 2020 on.

    So it is unless `torch.backends.cudnn.allow_tf32` says otherwise, which `set_arithmetic` sets
    for convolutions and matrix products alike.
    """
    return (
        device.type == "cuda"
        and dtype == torch.float32
        and torch.backends.cudnn.allow_tf32
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def encoding_fingerprint(vae: Any, weights_hash: str | None = None) -> str:
    """What tells latents of this VAE from those of others, or of other ways to use it.

    Args:
        vae: diffusers' AutoencoderKL.
        weights_hash: Its `weights_fingerprint`, where that is known.
    """
    tiled = "/tiled" if vae.use_tiling else ""
    return f"{weights_hash or weights_fingerprint(vae)}{tiled}"


@torch.no_grad()
def decode(
    vae: Any, latents: Float[Tensor, "b 4 h w"], scaling_factor: float
) -> Float[Tensor, "b 3 height width"]:
    """Scaled latents -> pixels in [0, 1]."""
    images = vae.decode((latents / scaling_factor).to(vae.dtype)).sample
    return (images.float() / 2 + 0.5).clamp(0, 1)  # type: ignore[no-any-return]


def weights_fingerprint(module: nn.Module) -> str:
    """SHA-256 over names, types and bytes of all tensors, in order of their names."""
    return tensors_fingerprint(weights_of(module))


def tensors_fingerprint(tensors: Mapping[str, Tensor | LazyTensor]) -> str:
    """SHA-256 over names, types and bytes of tensors, which may be read in pieces."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        if isinstance(tensor, LazyTensor):
            for begin, end in tensor.ranges():
                digest.update(bytes_of(tensor.elements(begin, end)))
        else:
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
