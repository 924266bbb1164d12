"""The nano model with one level: fewer kernels, and as many kinds of them but for resizing.

And one of barely any, for what chooses between settings by the memory that a step takes.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from impasto.models.writing.architectures import Architecture, write_random_model


def flat_architecture(nano: Architecture) -> Architecture:
    unet, vae, text_encoder = nano.configs
    flat = {
        "block_out_channels": [16],  # has a weight whose state is large enough to be offloaded
        "down_block_types": ["CrossAttnDownBlock2D"],
        "up_block_types": ["UpBlock2D"],
    }
    return replace(nano, configs=({**unet, **flat}, vae, {**text_encoder, "num_hidden_layers": 2}))


def write_flat_model(nano: Architecture, folder: Path) -> Path:
    """Write it as a Diffusers folder, which is read-only by agreement; returns the folder."""
    write_random_model(flat_architecture(nano), folder, seed=0, dtype=torch.float32)
    return folder


@pytest.fixture(scope="session")
def one_level_model(tmp_path_factory, nano_architecture):
    """For modules that take it for their `nano_model`, as where layers are not what they are about.

    A run of it takes a fourth less, and each of several processes exchanges half as many tensors.
    """
    return write_flat_model(nano_architecture, tmp_path_factory.mktemp("models") / "nano")


def bare_architecture(nano: Architecture, *, attends: bool = False) -> Architecture:
    """A U-Net with one level and no middle, and without attention unless it is asked for."""
    unet, *others = nano.configs
    bare = {
        "block_out_channels": [16],
        "down_block_types": ["CrossAttnDownBlock2D" if attends else "DownBlock2D"],
        "mid_block_type": None,
        "up_block_types": ["UpBlock2D"],
    }
    return replace(nano, configs=({**unet, **bare}, *others))


def write_bare_model(nano: Architecture, folder: Path) -> Path:
    """Write one with attention as a Diffusers folder, which is read-only; returns the folder."""
    architecture = bare_architecture(nano, attends=True)
    write_random_model(architecture, folder, seed=0, dtype=torch.float32)
    return folder
