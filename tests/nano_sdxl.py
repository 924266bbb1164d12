"""A model with SDXL's structure and few parameters: three levels of two layers each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from two_encoders import architecture

from impasto.models.families import SDXL
from impasto.models.family import Family
from impasto.models.reading.opening import OpenOptions
from impasto.models.writing.architectures import Architecture, write_random_model
from impasto.models.writing.conversion import convert_model


def deep_architecture(nano: Architecture, family: Family = SDXL) -> Architecture:
    """Return an architecture with all 23 blocks that `--block_lr` names."""
    small = architecture(nano, family)
    unet, *others = small.configs
    return replace(small, configs=({**unet, "layers_per_block": 2}, *others))


def write_sdxl_file(nano: Architecture, file: Path, family: Family = SDXL) -> Path:
    """Write the model with random weights as one file; return its path."""
    folder = file.with_suffix("")
    write_random_model(deep_architecture(nano, family), folder, seed=0, dtype=torch.float32)
    convert_model(str(folder), file, "safetensors", {}, OpenOptions())
    return file
