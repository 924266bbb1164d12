"""The nano model with one level: fewer kernels, but all kinds except resizing.

Also a model with almost no layers, for tests of choosing settings by the memory of a step.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from impasto.models.writing.architectures import Architecture, write_random_model


def flat_architecture(nano: Architecture) -> Architecture:
    unet, vae, text_encoder = nano.configs
    flat = {
        "block_out_channels": [16],  # wide enough for an optimizer state that is offloaded
        "down_block_types": ["CrossAttnDownBlock2D"],
        "up_block_types": ["UpBlock2D"],
    }
    return replace(nano, configs=({**unet, **flat}, vae, {**text_encoder, "num_hidden_layers": 2}))


def write_flat_model(nano: Architecture, folder: Path) -> Path:
    """Write the model as a Diffusers folder, read-only by agreement; return the folder."""
    write_random_model(flat_architecture(nano), folder, seed=0, dtype=torch.float32)
    return folder


@pytest.fixture(scope="session")
def one_level_model(tmp_path_factory, nano_architecture):
    """A replacement for `nano_model` in modules whose tests do not depend on the number of layers.

    A run with it takes a quarter less time, and several processes exchange half as many tensors.
    """
    return write_flat_model(nano_architecture, tmp_path_factory.mktemp("models") / "nano")


def bare_architecture(nano: Architecture, *, attends: bool = False) -> Architecture:
    """Return an architecture with one level, no middle block, and attention only if `attends`."""
    unet, *others = nano.configs
    bare = {
        "block_out_channels": [16],
        "down_block_types": ["CrossAttnDownBlock2D" if attends else "DownBlock2D"],
        "mid_block_type": None,
        "up_block_types": ["UpBlock2D"],
    }
    return replace(nano, configs=({**unet, **bare}, *others))


def write_bare_model(nano: Architecture, folder: Path) -> Path:
    """Write the model with attention as a Diffusers folder, read-only; return the folder."""
    architecture = bare_architecture(nano, attends=True)
    write_random_model(architecture, folder, seed=0, dtype=torch.float32)
    return folder
