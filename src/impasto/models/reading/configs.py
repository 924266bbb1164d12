"""Derives the configurations of the networks, in diffusers' and transformers' terms, from tensors.

The shapes determine everything except the numbers of attention heads and of normalisation groups.
For networks of Stable Diffusion's own sizes these are known; for others the file states them
(`CONFIGS_KEY`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from impasto.checkpoints.key_rows import UNetLayout, VaeLayout
from impasto.checkpoints.keymap import ComponentKind
from impasto.checkpoints.tensors import Tensors
from impasto.errors import ModelError
from impasto.models.family import Component, Family
from impasto.parsing import parse_json

CONFIGS_KEY = "impasto.configs"
HEAD_WIDTH = 64  # of all text encoders
GROUPS = 32

_NOT_IN_SHAPES = {
    ComponentKind.UNET: ("attention_head_dim", "norm_num_groups"),
    ComponentKind.VAE: ("norm_num_groups",),
    ComponentKind.TEXT: ("num_attention_heads", "hidden_act"),
}

MOST_LAYERS = 200
"""More than any CLIP, U-Net or VAE has; a damaged or malicious file may state 100,000."""

WIDEST = 1_000_000
"""More than any width, vocabulary size or length of these networks."""

Configs = dict[str, dict[str, Any]]


def configs_in(
    metadata: Mapping[str, str], components: Iterable[str], source: str
) -> Configs | None:
    """Return the configurations of these components that a file states, or None if it states none.

    Raises:
        ModelError: They are not readable.
    """
    if CONFIGS_KEY not in metadata:
        return None
    try:
        stated = parse_json(metadata[CONFIGS_KEY])
        configs = {component: dict(stated[component]) for component in components}
    except (ValueError, LookupError, TypeError) as error:
        raise ModelError(f"{source}: its metadata {CONFIGS_KEY} is damaged ({error}).") from error
    for component, config in configs.items():
        require_modest(config, f"{source} ({component})")
    return configs


def require_modest(config: Mapping[str, Any], source: str) -> None:
    """Refuse a configuration whose network would take hours or all memory to build.

    Raises:
        ModelError: It has more layers or greater widths than any such network.
    """
    for key, value in config.items():
        numbers = value if isinstance(value, (list, tuple)) else [value]
        limit = MOST_LAYERS if "layers" in key else WIDEST
        for number in numbers:
            is_number = isinstance(number, (int, float)) and not isinstance(number, bool)
            if is_number and not abs(number) <= limit:
                raise ModelError(
                    f"{source}: {key} in its configuration is {number}; expected {limit} at most. "
                    f"The file is damaged or no model."
                )
        if isinstance(value, (list, tuple)) and len(value) > MOST_LAYERS:
            raise ModelError(
                f"{source}: its configuration has {len(value)} values for {key}; expected "
                f"{MOST_LAYERS} at most. The file is damaged or no model."
            )
    stated_scaling(config, source)


def stated_scaling(config: Mapping[str, Any], source: str) -> float | None:
    """Return the scaling factor of latents in a VAE's configuration; None if it has no such entry.

    The family's factor applies then: configurations of early diffusers have no such entry.

    Raises:
        ModelError: It is not a number above 0.
    """
    if "scaling_factor" not in config:
        return None
    value = config["scaling_factor"]
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (is_number and 0 < value < math.inf):
        raise ModelError(f"{source}: its scaling_factor is {value!r}; expected a number above 0.")
    return float(value)


def require_plain_latents(config: Mapping[str, Any], source: str) -> None:
    """Refuse a VAE whose latents need more than one scaling factor before the U-Net.

    Raises:
        ModelError: Its configuration shifts latents or scales them per channel.
    """
    key = next((key for key in _OTHER_SCALING if config.get(key) not in (None, 0)), None)
    if key is not None:
        raise ModelError(
            f"{source}: its configuration has {key}, so this VAE scales latents differently from "
            f"Stable Diffusion's, like those of Playground 2.5, SD 3 and Flux. Use a VAE of Stable "
            f"Diffusion."
        )


_OTHER_SCALING = ("latents_mean", "latents_std", "shift_factor")
"""Entries of diffusers' `AutoencoderKL` that are null for Stable Diffusion."""


def configs_from(components: Mapping[str, Tensors], family: Family, source: str) -> Configs:
    """Derive the configurations of a model of Stable Diffusion's own size from its tensors.

    Raises:
        ModelError: It is of another size, or a tensor that shows the size is missing.
    """
    try:
        return {
            component.name: READERS[component.kind](components[component.name], component, family)
            for component in family.components
        }
    except KeyError as error:
        raise ModelError(
            f"{source} is incomplete: {error.args[0]} is missing. Download or copy it again."
        ) from error
    except UnknownSizeError as error:
        raise ModelError(
            f"{source}: {error} is not one of Stable Diffusion's sizes, and the file does not say "
            f"how many attention heads and groups it has. Use the model's Diffusers folder."
        ) from error


def metadata_for(
    configs: Configs, components: Mapping[str, Tensors], family: Family
) -> dict[str, str]:
    """Return the metadata that states the configurations; empty if the shapes determine them."""
    try:
        known = configs_from(components, family, "")
    except ModelError:
        return {CONFIGS_KEY: json.dumps(configs)}
    told = all(
        known[component.name].get(key) == configs[component.name].get(key)
        for component in family.components
        for key in _NOT_IN_SHAPES[component.kind]
        if key in configs[component.name]
    )
    return {} if told else {CONFIGS_KEY: json.dumps(configs)}


class UnknownSizeError(Exception):
    """A network is not of Stable Diffusion's size, so its heads and groups cannot be known."""


def unet_config(tensors: Tensors, component: Component, family: Family) -> dict[str, Any]:
    """Derive the configuration of diffusers' UNet2DConditionModel from tensors."""
    layout = UNetLayout.of_diffusers(tensors.keys())
    channels = [
        tensors[f"down_blocks.{n}.resnets.0.conv1.weight"].shape[0]
        for n in range(len(layout.attention))
    ]
    if tuple(channels) != component.channels:
        raise UnknownSizeError(f"a U-Net of {channels} channels")
    down = ["CrossAttnDownBlock2D" if has else "DownBlock2D" for has in layout.attention]
    up = ["CrossAttnUpBlock2D" if has else "UpBlock2D" for has in reversed(layout.attention)]
    key = next(name for name in tensors if name.endswith("attn2.to_k.weight"))
    return {
        "sample_size": family.resolution // family.cell,
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
        **_depths(tensors, layout),
        **_conditioning(tensors, family),
    }


def _depths(tensors: Tensors, layout: UNetLayout) -> dict[str, Any]:
    """Return the number of transformer blocks per attention module, if that is not one."""
    depths = [
        count_modules(tensors, f"down_blocks.{level}.attentions.0.transformer_blocks") or 1
        for level in range(len(layout.attention))
    ]
    return {"transformer_layers_per_block": depths} if set(depths) != {1} else {}


def _conditioning(tensors: Tensors, family: Family) -> dict[str, Any]:
    """Return the settings for inputs other than noise, timestep and text."""
    if family.sizes is None:
        return {}
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": family.sizes.width,
        "projection_class_embeddings_input_dim": tensors["add_embedding.linear_1.weight"].shape[1],
    }


def vae_config(tensors: Tensors, component: Component, family: Family) -> dict[str, Any]:
    """Derive the configuration of diffusers' AutoencoderKL from tensors."""
    layout = VaeLayout.of_diffusers(tensors.keys())
    channels = [
        tensors[f"encoder.down_blocks.{n}.resnets.0.conv1.weight"].shape[0]
        for n in range(layout.levels)
    ]
    if tuple(channels) != component.channels:
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


def text_config(tensors: Tensors, component: Component, _: Family) -> dict[str, Any]:
    """Derive the configuration of transformers' CLIPTextModel from tensors."""
    reading = component.text
    embedding = tensors["embeddings.token_embedding.weight"].shape
    if embedding[1] != reading.width:
        raise UnknownSizeError(f"a text encoder of width {embedding[1]}")
    return {
        "vocab_size": embedding[0],
        "hidden_size": embedding[1],
        "intermediate_size": tensors["encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": count_modules(tensors, "encoder.layers"),
        "num_attention_heads": embedding[1] // HEAD_WIDTH,
        "max_position_embeddings": tensors["embeddings.position_embedding.weight"].shape[0],
        "hidden_act": reading.activation,
        "projection_dim": embedding[1],
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": reading.pad_id,
    }


def count_modules(tensors: Tensors, name: str) -> int:
    """Return the number of numbered modules in a module list."""
    start = f"{name}."
    inside = (n.removeprefix(start) for n in tensors if n.startswith(start))
    return len({rest.partition(".")[0] for rest in inside})


READERS: dict[ComponentKind, Callable[[Tensors, Component, Family], dict[str, Any]]] = {
    ComponentKind.UNET: unet_config,
    ComponentKind.VAE: vae_config,
    ComponentKind.TEXT: text_config,
}
"""Kind of network -> function that derives its configuration from its tensors."""
