"""What weights that learn are kept in, and how the optimizer goes through them, by the settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from accelerate import Accelerator
from torch import nn

from impasto.checkpoints.keymap import ComponentKind
from impasto.config.run import RunConfig
from impasto.models.trainable import Trainable, TrainedModule, recomputed_blocks
from impasto.models.writing.saving import DTYPES
from impasto.training.compute.float8 import float8_layers
from impasto.training.compute.precision import computed_kind
from impasto.training.optim.chunked import ChunkRules
from impasto.training.optim.mixed_precision import autocast_dtype
from impasto.training.optim.offload import OffloadedStates
from impasto.training.optim.rounding import Rounding, build_rounding
from impasto.training.optim.streaming import WeightStream
from impasto.training.optim.weight_copies import WeightCopies, layers_to_copy


def build_dtypes(config: RunConfig) -> dict[ComponentKind, torch.dtype]:
    """Kinds of networks that are read in 16 bits, since they will be kept so."""
    dtype = DTYPES[config.training.weight_dtype]
    if config.method.kind != "full":
        return {}
    texts = {ComponentKind.TEXT: dtype} if config.trains_text_encoder else {}
    return {ComponentKind.UNET: dtype, **texts}


def build_chunk_rules(
    config: RunConfig, modules: Sequence[TrainedModule], accelerator: Accelerator
) -> ChunkRules:
    """How the optimizer goes through the weights, which are brought to their width."""
    training, device = config.training, accelerator.device
    in_backward = training.optimizer_in_backward != "off"
    return ChunkRules(
        cast_weights(modules, config, device),
        each_alone=in_backward,
        away=OffloadedStates(device) if training.offload_optimizer else None,
    )


def cast_weights(
    modules: Sequence[TrainedModule], config: RunConfig, device: torch.device
) -> Rounding | None:
    """Bring what learns to the width of the settings; how it is rounded there, if to 16 bits."""
    dtype = DTYPES[config.training.weight_dtype]
    if dtype is torch.float32:
        return None
    for trained in modules:
        for parameter in trained.parameters().values():
            parameter.data = parameter.data.to(dtype)
    return build_rounding(config.training.rounding or "stochastic", device)


def build_weight_copies(config: RunConfig, trainable: Trainable) -> WeightCopies:
    """The copies that the settings ask for; of nothing, if they ask for none."""
    dtype = autocast_dtype(computed_kind(config))
    if not config.training.weight_copies or dtype is None:
        return WeightCopies([], torch.float32)
    return WeightCopies(copied_layers(config, trainable.unet), dtype)


def copied_layers(
    config: RunConfig, unet: nn.Module
) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Module, name in it and weight of what has 16-bit copies if the settings ask for some.

    What computes in float8 rounds its weights to that at once.
    """
    in_float8 = float8_layers(unet).values() if config.training.float8 else ()
    return layers_to_copy(unet, set(in_float8))


def build_weight_stream(
    config: RunConfig, trainable: Trainable, device: torch.device
) -> WeightStream | None:
    """What brings the U-Net's blocks to the device one by one; None if the settings ask for none.

    Its weights have their width already.
    """
    if not config.training.stream_weights:
        return None
    return WeightStream(trainable.network, recomputed_blocks(trainable.unet), device)


def copied_numel(config: RunConfig, trainable: Trainable) -> int:
    """How many weights have copies in another dtype."""
    if not config.training.weight_copies:
        return 0
    return sum(weight.numel() for _, _, weight in copied_layers(config, trainable.unet))
