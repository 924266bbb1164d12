"""The nano model with one level: fewer kernels, and as many kinds of them but for resizing."""

from pathlib import Path

import torch

from impasto.models.writing.architectures import Architecture, write_random_model


def write_flat_model(nano: Architecture, folder: Path) -> Path:
    """Write it as a Diffusers folder, which is read-only by agreement; returns the folder."""
    unet, vae, text_encoder = nano.configs
    flat = {
        "block_out_channels": [16],  # has a weight whose state is large enough to be offloaded
        "down_block_types": ["CrossAttnDownBlock2D"],
        "up_block_types": ["UpBlock2D"],
    }
    configs = ({**unet, **flat}, vae, {**text_encoder, "num_hidden_layers": 2})
    write_random_model(Architecture(nano.family, configs), folder, seed=0, dtype=torch.float32)
    return folder
