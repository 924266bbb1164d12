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
"""Side of a tile in pixels; neighbours overlap by a quarter of it (diffusers' AutoencoderKL)."""


def tile(vae: Any, *, tiled: bool) -> None:
    """Set whether a VAE encodes and decodes larger images in overlapping tiles or whole.

    A tile does not see the rest of the image, so the results of the two methods differ slightly.
    """
    vae.use_tiling = tiled
    vae.tile_sample_min_size, vae.tile_latent_min_size = TILE, TILE // CELL


@contextlib.contextmanager
def tiling(vae: Any, *, tiled: bool) -> Iterator[None]:
    """Have a VAE work in tiles within the block if `tiled`; then restore its earlier setting.

    A VAE that is set to tiles already keeps working in tiles.
    """
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
    """Return the VAE's encoder in the form that the latent cache takes, in the VAE's dtype.

    The VAE is hashed on its current device or while offloaded, and moved to its target device when
    the first image is encoded; if all latents are cached, it is never moved.

    A VAE in half precision overflows on some images (stabilityai's for SDXL is known for it); for
    those images it is converted to float32 for one call.

    Args:
        vae: diffusers' AutoencoderKL.
        batch_size: Images per call.
        device: Device on which it computes; None means the VAE's current device.
        npz_endings: Suffixes of the names of sd-scripts' files of its latents.
        weights_hash: Its `weights_fingerprint` if that is known.
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
    """Return whether a network computes in TF32 (10 bits of fraction): float32 on recent GPUs.

    Those are GPUs from 2020 on (compute capability 8.0), unless `torch.backends.cudnn.allow_tf32`
    is false; `set_arithmetic` sets that for convolutions and matrix products alike.
    """
    return (
        device.type == "cuda"
        and dtype == torch.float32
        and torch.backends.cudnn.allow_tf32
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def encoding_fingerprint(vae: Any, weights_hash: str | None = None) -> str:
    """Return a key that distinguishes latents of this VAE, and of tiled encoding, from all others.

    Args:
        vae: diffusers' AutoencoderKL.
        weights_hash: Its `weights_fingerprint` if that is known.
    """
    tiled = "/tiled" if vae.use_tiling else ""
    return f"{weights_hash or weights_fingerprint(vae)}{tiled}"


@torch.no_grad()
def decode(
    vae: Any, latents: Float[Tensor, "b 4 h w"], scaling_factor: float
) -> Float[Tensor, "b 3 height width"]:
    """Decode scaled latents to pixels in [0, 1]."""
    images = vae.decode((latents / scaling_factor).to(vae.dtype)).sample
    return (images.float() / 2 + 0.5).clamp(0, 1)  # type: ignore[no-any-return]


def weights_fingerprint(module: nn.Module) -> str:
    """Return a SHA-256 over names, dtypes, shapes and bytes of all tensors, ordered by name."""
    return tensors_fingerprint(weights_of(module))


def tensors_fingerprint(tensors: Mapping[str, Tensor | LazyTensor]) -> str:
    """Return a SHA-256 over names, dtypes, shapes and bytes of tensors; lazy ones in pieces."""
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
