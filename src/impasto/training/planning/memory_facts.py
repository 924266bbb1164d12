"""What a run's settings say about who is on the device while it trains."""

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
    """Whether some images are encoded each time they are shown."""
    subsets = [subset for entry in config.dataset.entries for subset in entry.subsets]
    return any(s.random_crop or s.color_aug or s.face_crop_aug_range for s in subsets)


def changes_captions(config: RunConfig) -> bool:
    """Whether some captions are not always the same."""
    subsets = [subset for entry in config.dataset.entries for subset in entry.subsets]
    varied = any(build_caption_rules(subset).changes_captions for subset in subsets)
    return varied or build_templates(config) is not None


def unloads_text_encoder(config: RunConfig) -> bool:
    """Whether the text encoder leaves the device: not where captions change as they are shown."""
    return config.training.cache_text_to_disk and not changes_captions(config)


def offloads_state(config: RunConfig) -> bool:
    """Whether the optimizer's state is kept in RAM and comes to the device for its step."""
    return config.training.offload_optimizer or row_of(config.optimizer.kind).is_paged


def takes_8bit_adamw(config: RunConfig) -> bool:
    """Whether PyTorch's AdamW can be exchanged for the one with 8-bit states, which is installed.

    With arguments of its own it may not be: bitsandbytes' takes others.
    """
    row = row_of(config.optimizer.kind)
    is_plain = (row.name, row.module) in {("AdamW", "torch.optim"), ("AdamW", "")}
    return (
        is_plain
        and not config.optimizer.arguments
        and importlib.util.find_spec("bitsandbytes") is not None
    )


def optimizer_bytes(config: RunConfig, shapes: Iterable[Sequence[int]]) -> int:
    """What the optimizer keeps for weights of some shapes."""
    row, given = find_row(config.optimizer.kind), config.optimizer.given()
    rounding = 2 * (config.training.rounding == "kahan")
    return int(sum(row.state_size(each, given) + rounding * math.prod(each) for each in shapes))


def has_large_previews(config: RunConfig) -> bool:
    """Whether some previews are larger than a tile of the VAE."""
    return any(max(prompt.width, prompt.height) > TILE for prompt in build_prompts(config))


def shapes_of(trainable: Trainable) -> list[torch.Size]:
    """The shapes of all weights that learn."""
    return [p.shape for trained in trainable.modules for p in trained.parameters().values()]


def steps_alone(config: RunConfig) -> bool:
    """Whether each weight is stepped in the backward pass, and its gradient freed at once."""
    return config.training.optimizer_in_backward != "off"


def numel_of(module: torch.nn.Module) -> int:
    """How many weights a network has."""
    return sum(parameter.numel() for parameter in module.parameters())


def bytes_of(module: torch.nn.Module) -> int:
    """Bytes of a network's weights as they are."""
    return sum(parameter.nbytes for parameter in module.parameters())


def text_encoder_bytes(config: RunConfig, model: BaseModel, device_type: str) -> int:
    """Bytes of frozen text encoders on the device: beside a GPU in the types they are stored in.

    On a CPU they are in float32.
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
    """What tells networks of other sizes apart."""
    unet: Any = trainable.unet
    named = {k: v for k, v in sorted(dict(unet.config).items()) if not k.startswith("_")}
    return (
        f"{json.dumps(named, default=str)}|{sum(trained.count() for trained in trainable.modules)}"
    )
