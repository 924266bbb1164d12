"""How another process makes the VAE that encodes: from the model's files, in the same type."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from impasto import presence
from impasto.data.caching.encoding import MomentsEncoder
from impasto.models.networks.casting import cast_network
from impasto.models.networks.loading import fill, materialise_buffers
from impasto.models.networks.making import empty_network
from impasto.models.networks.vae import moments_encoder, tile
from impasto.models.reading.completeness import require_complete
from impasto.models.reading.opening import OpenOptions, open_model


@dataclass(frozen=True)
class Arithmetic:
    """How PyTorch computes on GPUs, as far as that changes bits.

    Attributes:
        matmul_tf32: Whether matrix products in float32 may round what they multiply to TF32.
        convolution_tf32: The same of convolutions.
        steady_convolutions: Whether cuDNN takes only kernels that give the same bits each time.
        steady: Whether all operations do.
    """

    matmul_tf32: bool
    convolution_tf32: bool
    steady_convolutions: bool
    steady: bool

    @classmethod
    def current(cls) -> Arithmetic:
        """Read the arithmetic that this process computes with."""
        return cls(
            torch.backends.cuda.matmul.allow_tf32,
            torch.backends.cudnn.allow_tf32,
            torch.backends.cudnn.deterministic,
            torch.are_deterministic_algorithms_enabled(),
        )

    def apply(self) -> None:
        """Have this process compute so."""
        torch.backends.cuda.matmul.allow_tf32 = self.matmul_tf32
        torch.backends.cudnn.allow_tf32 = self.convolution_tf32
        torch.backends.cudnn.deterministic = self.steady_convolutions
        if self.steady:  # cuBLAS reads it when it is first used
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(self.steady)


@dataclass(frozen=True)
class VaeRecipe:
    """Makes an encoder like one that is there, in a process that has the model's files too.

    Attributes:
        source: A file or folder, with its whole path, or a Hub id.
        options: What is known of the model, another VAE included.
        dtype: What it computes in.
        tiled: Whether it encodes larger images in tiles.
        batch_size: Images per call.
        device: Kind of the device it computes on: `cuda` or `cpu`.
        arithmetic: How the process computes that has the encoder already.
        npz_endings: What names of sd-scripts' files of its latents end on.
    """

    source: str
    options: OpenOptions
    dtype: torch.dtype
    tiled: bool
    batch_size: int
    device: str
    arithmetic: Arithmetic
    npz_endings: tuple[str, ...]

    def __call__(self) -> MomentsEncoder:
        """Read the VAE alone, and put it on its device when the first image is encoded.

        Raises:
            ModelError: The files are not there, or damaged.
        """
        self.arithmetic.apply()
        vae = load_vae(self.source, self.options)
        tile(vae, tiled=self.tiled)
        return moments_encoder(
            cast_network(vae, self.dtype),
            batch_size=self.batch_size,
            device=torch.device(self.device),
            npz_endings=self.npz_endings,
        )


def load_vae(source: str, options: OpenOptions) -> Any:
    """The VAE of a base model, in float32 on the CPU; its other networks are not read.

    Raises:
        ModelError: A tensor is missing, or the files are damaged.
    """
    contents = open_model(source, options)
    component = contents.identity.family.vae
    named = f"{source} ({component.name})"
    network = empty_network(component, contents.configs[component.name], named)
    alone = replace(contents, components={component.name: contents.components[component.name]})
    needed = {component.name: network.state_dict()}
    tensors = require_complete(alone, needed).components[component.name]
    fill(network, tensors, named, lambda _: None, torch.float32)
    materialise_buffers(network)
    return network.requires_grad_(requires_grad=False).eval()


def with_recipe(
    encoder: MomentsEncoder,
    vae: Any,
    source: str | Path,
    options: OpenOptions | None,
    device: torch.device,
) -> MomentsEncoder:
    """An encoder that other processes can make too.

    Args:
        encoder: What `moments_encoder` made of the VAE.
        vae: That VAE.
        source: Where the base model was read from.
        options: As it was read.
        device: Where it computes.
    """
    known = options or OpenOptions()
    recipe = VaeRecipe(
        _whole(str(source)),
        replace(known, vae=None if known.vae is None else _whole(known.vae)),
        vae.dtype,
        bool(vae.use_tiling),
        encoder.batch_size,
        device.type,
        Arithmetic.current(),
        encoder.npz_endings,
    )
    return replace(encoder, recipe=recipe)


def _whole(source: str) -> str:
    """A path as it is found from any folder; a Hub id as it is."""
    path = Path(source)
    return str(path.absolute()) if presence.exists(path) else source
