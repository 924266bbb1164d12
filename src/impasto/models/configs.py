"""Configurations of the networks, in the words of diffusers and transformers, from their tensors.

Shapes tell everything but the numbers of attention heads and of normalisation groups. For networks
of Stable Diffusion's own sizes these are known; for others the file says them (`CONFIGS_KEY`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from impasto.checkpoints.keymap import TEXT_ENCODER, UNET, VAE, UNetLayout, VaeLayout
from impasto.checkpoints.tensors import Tensors
from impasto.errors import ModelError
from impasto.models.families import Family
from impasto.parsing import parse_json

CONFIGS_KEY = "impasto.configs"
UNET_CHANNELS = [320, 640, 1280, 1280]
VAE_CHANNELS = [128, 256, 512, 512]
HEAD_WIDTH = 64  # of both text encoders
GROUPS = 32

_NOT_IN_SHAPES = (
    (UNET, "attention_head_dim"),
    (UNET, "norm_num_groups"),
    (VAE, "norm_num_groups"),
    (TEXT_ENCODER, "num_attention_heads"),
    (TEXT_ENCODER, "hidden_act"),
)

MOST_LAYERS = 200
"""More than any CLIP, U-Net or VAE has; a damaged or hostile file may ask for 100,000."""

WIDEST = 1_000_000
"""More than any width, vocabulary or length of these networks."""

Configs = dict[str, dict[str, Any]]


def configs_in(metadata: Mapping[str, str], source: str) -> Configs | None:
    """The configurations that a file states, or None.

    Raises:
        ModelError: They are not readable.
    """
    if CONFIGS_KEY not in metadata:
        return None
    try:
        stated = parse_json(metadata[CONFIGS_KEY])
        configs = {part: dict(stated[part]) for part in (UNET, VAE, TEXT_ENCODER)}
    except (ValueError, LookupError, TypeError) as error:
        raise ModelError(f"{source}: its metadata {CONFIGS_KEY} is damaged ({error}).") from error
    for part, config in configs.items():
        require_modest(config, f"{source} ({part})")
    return configs


def require_modest(config: Mapping[str, Any], source: str) -> None:
    """Refuse a configuration whose network would take hours or all memory to make.

    Raises:
        ModelError: It asks for more layers or greater widths than any such network has.
    """
    for key, value in config.items():
        numbers = value if isinstance(value, (list, tuple)) else [value]
        limit = MOST_LAYERS if "layers" in key else WIDEST
        for number in numbers:
            is_number = isinstance(number, (int, float)) and not isinstance(number, bool)
            if is_number and not abs(number) <= limit:
                raise ModelError(
                    f"{source}: its configuration says {key} {number}; expected {limit} at most. "
                    f"The file is damaged or no model."
                )
        if key == "scaling_factor" and not (isinstance(value, (int, float)) and value > 0):
            raise ModelError(
                f"{source}: its scaling_factor is {value!r}; expected a number above 0."
            )
        if isinstance(value, (list, tuple)) and len(value) > MOST_LAYERS:
            raise ModelError(
                f"{source}: its configuration has {len(value)} values for {key}; expected "
                f"{MOST_LAYERS} at most. The file is damaged or no model."
            )


def configs_from(parts: Mapping[str, Tensors], family: Family, source: str) -> Configs:
    """The configurations of a model of Stable Diffusion's own size.

    Raises:
        ModelError: It is of another size, or a tensor that tells the size is missing.
    """
    try:
        return {
            UNET: unet_config(parts[UNET], family),
            VAE: vae_config(parts[VAE], family),
            TEXT_ENCODER: text_config(parts[TEXT_ENCODER], family),
        }
    except KeyError as error:
        raise ModelError(
            f"{source} is incomplete: {error.args[0]} is missing. Download or copy it again."
        ) from error
    except UnknownSizeError as error:
        raise ModelError(
            f"{source}: {error} is not one of Stable Diffusion's sizes, and the file does not say "
            f"how many attention heads and groups it has. Take the model's Diffusers folder."
        ) from error


def metadata_for(configs: Configs, parts: Mapping[str, Tensors], family: Family) -> dict[str, str]:
    """What a single file has to say of its configurations: nothing where its shapes tell them."""
    try:
        known = configs_from(parts, family, "")
    except ModelError:
        return {CONFIGS_KEY: json.dumps(configs)}
    told = all(known[p].get(k) == configs[p].get(k) for p, k in _NOT_IN_SHAPES if k in configs[p])
    return {} if told else {CONFIGS_KEY: json.dumps(configs)}


class UnknownSizeError(Exception):
    """A network is not of Stable Diffusion's size, so its heads and groups cannot be known."""


def unet_config(tensors: Tensors, family: Family) -> dict[str, Any]:
    """For diffusers' UNet2DConditionModel."""
    layout = UNetLayout.of_diffusers(tensors.keys())
    channels = [
        tensors[f"down_blocks.{n}.resnets.0.conv1.weight"].shape[0]
        for n in range(len(layout.attention))
    ]
    if channels != UNET_CHANNELS:
        raise UnknownSizeError(f"a U-Net of {channels} channels")
    down = ["CrossAttnDownBlock2D" if has else "DownBlock2D" for has in layout.attention]
    up = ["CrossAttnUpBlock2D" if has else "UpBlock2D" for has in reversed(layout.attention)]
    key = next(name for name in tensors if name.endswith("attn2.to_k.weight"))
    return {
        "sample_size": family.resolution // 8,
        "in_channels": tensors["conv_in.weight"].shape[1],
        "out_channels": tensors["conv_out.weight"].shape[0],
        "layers_per_block": layout.layers,
        "down_block_types": down,
        "up_block_types": up,
        "block_out_channels": channels,
        "cross_attention_dim": tensors[key].shape[1],
        "attention_head_dim": family.heads(channels),
        "use_linear_projection": family.linear_projection,
        "upcast_attention": family.upcast_attention,
        "norm_num_groups": GROUPS,
    }


def vae_config(tensors: Tensors, family: Family) -> dict[str, Any]:
    """For diffusers' AutoencoderKL."""
    layout = VaeLayout.of_diffusers(tensors.keys())
    channels = [
        tensors[f"encoder.down_blocks.{n}.resnets.0.conv1.weight"].shape[0]
        for n in range(layout.levels)
    ]
    if channels != VAE_CHANNELS:
        raise UnknownSizeError(f"a VAE of {channels} channels")
    return {
        "in_channels": tensors["encoder.conv_in.weight"].shape[1],
        "out_channels": tensors["decoder.conv_out.weight"].shape[0],
        "down_block_types": ["DownEncoderBlock2D"] * layout.levels,
        "up_block_types": ["UpDecoderBlock2D"] * layout.levels,
        "block_out_channels": channels,
        "layers_per_block": layout.layers,
        "latent_channels": tensors["post_quant_conv.weight"].shape[0],
        "norm_num_groups": GROUPS,
        "sample_size": family.resolution,
        "scaling_factor": family.scaling_factor,
    }


def text_config(tensors: Tensors, family: Family) -> dict[str, Any]:
    """For transformers' CLIPTextConfig."""
    words = tensors["embeddings.token_embedding.weight"].shape
    if words[1] != family.context_width:
        raise UnknownSizeError(f"a text encoder of width {words[1]}")
    layers = {name.split(".")[2] for name in tensors if name.startswith("encoder.layers.")}
    return {
        "vocab_size": words[0],
        "hidden_size": words[1],
        "intermediate_size": tensors["encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": len(layers),
        "num_attention_heads": words[1] // HEAD_WIDTH,
        "max_position_embeddings": tensors["embeddings.position_embedding.weight"].shape[0],
        "hidden_act": family.text_activation,
        "projection_dim": words[1],
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": family.pad_id,
    }
