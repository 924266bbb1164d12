"""Facts about a run's settings that its memory depends on, such as which networks are offloaded."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from impasto.config.run import RunConfig
from impasto.datasets.sources import build_caption_rules
from impasto.models.networks.loading import BaseModel
from impasto.models.networks.vae import TILE
from impasto.models.networks.widening import kept_type
from impasto.models.trainable import Trainable
from impasto.optimizer_table import row_of
from impasto.training.builders.methods import build_templates
from impasto.training.builders.prompts import build_prompts
from impasto.training.optim.optimizers import find_row


def encodes_while_training(config: RunConfig) -> bool:
    """Return whether some images are encoded by the VAE each time they are shown."""
    subsets = [subset for entry in config.dataset.entries for subset in entry.subsets]
    return any(s.random_crop or s.color_aug or s.face_crop_aug_range for s in subsets)


def changes_captions(config: RunConfig) -> bool:
    """Return whether some images get a varying caption, such as shuffled tags or a template."""
    subsets = [subset for entry in config.dataset.entries for subset in entry.subsets]
    varied = any(build_caption_rules(subset).changes_captions for subset in subsets)
    return varied or build_templates(config) is not None


def unloads_text_encoder(config: RunConfig) -> bool:
    """Return whether the text encoder is unloaded: captions are cached on disk and never vary."""
    return config.training.cache_text_to_disk and not changes_captions(config)


def offloads_state(config: RunConfig) -> bool:
    """Return whether the optimizer's state is kept in RAM and copied to the device for a step."""
    return config.training.offload_optimizer or row_of(config.optimizer.kind).is_paged


def takes_8bit_adamw(config: RunConfig) -> bool:
    """Return whether PyTorch's AdamW can be replaced by bitsandbytes' 8-bit AdamW.

    False if bitsandbytes is not installed, or if the optimizer has extra arguments: those of
    bitsandbytes differ.
    """
    row = row_of(config.optimizer.kind)
    is_plain = (row.name, row.module) in {("AdamW", "torch.optim"), ("AdamW", "")}
    return (
        is_plain
        and not config.optimizer.arguments
        and importlib.util.find_spec("bitsandbytes") is not None
    )


def optimizer_bytes(config: RunConfig, shapes: Iterable[Sequence[int]]) -> int:
    """Return the bytes of the optimizer's state for weights of the given shapes.

    With Kahan summation this includes the 2 bytes per weight of its compensation.
    """
    row, given = find_row(config.optimizer.kind), config.optimizer.given()
    rounding = 2 * (config.training.rounding == "kahan")
    return int(sum(row.state_size(each, given) + rounding * math.prod(each) for each in shapes))


def has_large_previews(config: RunConfig) -> bool:
    """Return whether some previews are larger than a tile of the VAE."""
    return any(max(prompt.width, prompt.height) > TILE for prompt in build_prompts(config))


def shapes_of(trainable: Trainable) -> list[torch.Size]:
    """Return the shapes of all trained weights."""
    return [p.shape for trained in trainable.modules for p in trained.parameters().values()]


def steps_alone(config: RunConfig) -> bool:
    """Return whether weights are stepped in the backward pass, and gradients freed at once."""
    return config.training.optimizer_in_backward != "off"


def numel_of(module: torch.nn.Module) -> int:
    """Return the number of weights of a network."""
    return sum(parameter.numel() for parameter in module.parameters())


def bytes_of(module: torch.nn.Module) -> int:
    """Return the bytes of a network's weights in their current dtypes."""
    return sum(parameter.nbytes for parameter in module.parameters())


def text_encoder_bytes(config: RunConfig, model: BaseModel, device_type: str) -> int:
    """Return the bytes of all text encoders' weights.

    Frozen ones on a GPU keep the dtype of the model file; on a CPU, or where they are trained, they
    are in float32.
    """
    total = 0
    for name, network in model.text_encoders.items():
        if device_type == "cpu" or config.trains_text_encoder:
            total += 4 * numel_of(network)
            continue
        stored = model.contents.components[name].values()
        total += sum(math.prod(t.shape) * kept_type(t.dtype).itemsize for t in stored)
    return total


def structure_of(trainable: Trainable) -> str:
    """Return a text that identifies the U-Net's structure and the number of trained weights."""
    unet: Any = trainable.unet
    named = {k: v for k, v in sorted(dict(unet.config).items()) if not k.startswith("_")}
    return (
        f"{json.dumps(named, default=str)}|{sum(trained.count() for trained in trainable.modules)}"
    )
