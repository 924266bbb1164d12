"""Rebuilds the VAE's encoder in another process, from the model's files and in the same dtype."""

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
    """The settings of PyTorch's GPU arithmetic that change the bits of results.

    Attributes:
        matmul_tf32: Whether float32 matrix products may round their inputs to TF32.
        convolution_tf32: Whether float32 convolutions may round their inputs to TF32.
        steady_convolutions: Whether cuDNN uses only deterministic kernels.
        steady: Whether all operations are deterministic.
    """

    matmul_tf32: bool
    convolution_tf32: bool
    steady_convolutions: bool
    steady: bool

    @classmethod
    def current(cls) -> Arithmetic:
        """Return the arithmetic settings of this process."""
        return cls(
            torch.backends.cuda.matmul.allow_tf32,
            torch.backends.cudnn.allow_tf32,
            torch.backends.cudnn.deterministic,
            torch.are_deterministic_algorithms_enabled(),
        )

    def apply(self) -> None:
        """Apply these arithmetic settings to this process."""
        torch.backends.cuda.matmul.allow_tf32 = self.matmul_tf32
        torch.backends.cudnn.allow_tf32 = self.convolution_tf32
        torch.backends.cudnn.deterministic = self.steady_convolutions
        if self.steady:  # cuBLAS reads the variable at its first use
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(self.steady)


@dataclass(frozen=True)
class VaeRecipe:
    """Builds an encoder like an existing one, in another process that can read the model's files.

    Attributes:
        source: Absolute path of the model's file or folder, or a Hub id.
        options: Options with which the model was opened, including a replacement VAE.
        dtype: Dtype in which the VAE computes.
        tiled: Whether it encodes larger images in tiles.
        batch_size: Images per call.
        device: Type of its device: `cuda` or `cpu`.
        arithmetic: Arithmetic settings of the process that has the existing encoder.
        npz_endings: Suffixes of the names of sd-scripts' files of its latents.
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
        """Load only the VAE; it is moved to its device when the first image is encoded.

        Raises:
            ModelError: The files are missing or damaged.
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
    """Load the VAE of a base model in float32 on the CPU, without reading the other networks.

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
    """Return an encoder with a recipe by which other processes can build it too.

    Args:
        encoder: Encoder that `moments_encoder` made of the VAE.
        vae: The VAE.
        source: File, folder or Hub id that the base model was read from.
        options: Options that it was read with.
        device: Device on which the encoder computes.
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
    """Return an existing path as an absolute path, and anything else (a Hub id) unchanged."""
    path = Path(source)
    return str(path.absolute()) if presence.exists(path) else source
