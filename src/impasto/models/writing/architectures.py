"""Builds models with random weights from a named architecture, for training from scratch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from impasto import files
from impasto.errors import ConfigError
from impasto.models.families import SD1, SD2_BASE, SDXL
from impasto.models.family import Family
from impasto.models.networks.loading import BaseModel, meta_model_of, state_dicts
from impasto.models.networks.making import make_network, without_values
from impasto.models.reading.contents import ModelContents
from impasto.models.reading.identity import Identity
from impasto.models.reading.pipeline_files import scheduler_config
from impasto.models.reading.recorded import RANDOM_KEY
from impasto.models.writing.saving import About, write_model


@dataclass(frozen=True)
class Architecture:
    """Configurations of a family's networks, in diffusers' and transformers' terms.

    Attributes:
        family: The family.
        configs: Configurations of its components, in their order.
    """

    family: Family
    configs: tuple[dict[str, Any], ...]

    @property
    def by_name(self) -> dict[str, dict[str, Any]]:
        """The configurations by component name."""
        return dict(zip(self.family.names, self.configs, strict=True))


def _cross_attention_unet(**changes: Any) -> dict[str, Any]:
    levels = len(changes["block_out_channels"])
    return {
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 2,
        "down_block_types": ["CrossAttnDownBlock2D"] * (levels - 1) + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * (levels - 1),
        **changes,
    }


def _autoencoder(
    family: Family, channels: list[int], layers: int, groups: int, sample_size: int
) -> dict[str, Any]:
    return {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
        "block_out_channels": channels,
        "layers_per_block": layers,
        "latent_channels": 4,
        "norm_num_groups": groups,
        "sample_size": sample_size,
        "scaling_factor": family.scaling_factor,
    }


def _clip_text(width: int, layers: int, heads: int, activation: str, pad: int) -> dict[str, Any]:
    return {
        "vocab_size": 49408,
        "hidden_size": width,
        "intermediate_size": width * 4,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 77,
        "hidden_act": activation,
        "projection_dim": width,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": pad,
    }


ARCHITECTURES: dict[str, Architecture] = {
    "tiny": Architecture(
        SD1,
        (
            _cross_attention_unet(
                sample_size=16,
                block_out_channels=[32, 96, 128],
                layers_per_block=1,
                down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
                up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
                cross_attention_dim=128,
                attention_head_dim=4,
                norm_num_groups=8,
            ),
            _autoencoder(SD1, [16, 32, 64, 96], 1, 8, 128),
            _clip_text(128, 2, 4, "quick_gelu", 49407),
        ),
    ),
    "sd1": Architecture(
        SD1,
        (
            _cross_attention_unet(
                block_out_channels=[320, 640, 1280, 1280],
                cross_attention_dim=768,
                attention_head_dim=8,
            ),
            _autoencoder(SD1, [128, 256, 512, 512], 2, 32, 512),
            _clip_text(768, 12, 12, "quick_gelu", 49407),
        ),
    ),
    "sd2": Architecture(
        SD2_BASE,
        (
            _cross_attention_unet(
                block_out_channels=[320, 640, 1280, 1280],
                cross_attention_dim=1024,
                attention_head_dim=[5, 10, 20, 20],
                use_linear_projection=True,
            ),
            _autoencoder(SD2_BASE, [128, 256, 512, 512], 2, 32, 512),
            _clip_text(1024, 23, 16, "gelu", 0),
        ),
    ),
    "sdxl": Architecture(
        SDXL,
        (
            _cross_attention_unet(
                sample_size=128,
                block_out_channels=[320, 640, 1280],
                down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
                up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
                transformer_layers_per_block=[1, 2, 10],
                cross_attention_dim=2048,
                attention_head_dim=[5, 10, 20],
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=1280 + 6 * 256,
            ),
            _autoencoder(SDXL, [128, 256, 512, 512], 2, 32, 1024),
            _clip_text(768, 12, 12, "quick_gelu", 49407),
            _clip_text(1280, 32, 20, "gelu", 0),
        ),
    ),
}


def find_architecture(name: str) -> Architecture:
    """Return the architecture with this name.

    Raises:
        ConfigError: There is none.
    """
    if name not in ARCHITECTURES:
        raise ConfigError(
            f"There is no architecture {name!r}; choose one of {', '.join(ARCHITECTURES)}."
        )
    return ARCHITECTURES[name]


def meta_model_of_architecture(
    architecture: Architecture, stored: torch.dtype = torch.float32
) -> BaseModel:
    """Return a base model of an architecture, with shapes and no values, for memory estimates.

    Args:
        architecture: The architecture.
        stored: Dtype that its file would have.
    """
    types = dict.fromkeys(architecture.family.names, stored)
    with without_values():
        return meta_model_of(_contents(architecture, "an architecture").cast(types))


def _contents(architecture: Architecture, source: str) -> ModelContents:
    """Return the contents of a model with PyTorch's default initial weights."""
    family, configs = architecture.family, architecture.by_name
    modules = {
        component.name: make_network(component, configs[component.name])
        for component in family.components
    }
    return ModelContents(
        source=source,
        form="random weights",
        components=state_dicts(modules),
        ldm_only={},
        configs=configs,
        scheduler_config=scheduler_config(family.prediction.name),
        identity=Identity(family, family.prediction, "asked for"),
    )


def write_random_model(
    architecture: Architecture, target: Path, *, seed: int, dtype: torch.dtype
) -> None:
    """Write a Diffusers folder with random weights.

    Raises:
        RunError: Something exists at `target` already.
        StorageError: It cannot be written.
    """
    files.require_absent(target)
    torch.manual_seed(seed)
    asked = dict.fromkeys(architecture.family.names, dtype)
    contents = _contents(architecture, target.name).cast(asked)
    about = About(title=target.name, more={RANDOM_KEY: "true"})
    write_model(contents, target, "diffusers", about)
