"""Dtypes, rounding, copies and streaming of trained weights, from the settings."""

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
    """Return the dtypes that trained networks are loaded in, by kind; empty for a hypernetwork."""
    dtype = DTYPES[config.training.weight_dtype]
    if config.method.kind != "full":
        return {}
    texts = {ComponentKind.TEXT: dtype} if config.trains_text_encoder else {}
    return {ComponentKind.UNET: dtype, **texts}


def build_chunk_rules(
    config: RunConfig, modules: Sequence[TrainedModule], accelerator: Accelerator
) -> ChunkRules:
    """Cast the trained weights to their dtype, and return how they are stepped in chunks."""
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
    """Cast trained weights to `training.weight_dtype`; return their rounding, None for float32."""
    dtype = DTYPES[config.training.weight_dtype]
    if dtype is torch.float32:
        return None
    for trained in modules:
        for parameter in trained.parameters().values():
            parameter.data = parameter.data.to(dtype)
    return build_rounding(config.training.rounding or "stochastic", device)


def build_weight_copies(config: RunConfig, trainable: Trainable) -> WeightCopies:
    """Build the 16-bit weight copies of the settings; without layers if they use none."""
    dtype = autocast_dtype(computed_kind(config))
    if not config.training.weight_copies or dtype is None:
        return WeightCopies([], torch.float32)
    return WeightCopies(copied_layers(config, trainable.unet), dtype)


def copied_layers(
    config: RunConfig, unet: nn.Module
) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Yield module, parameter name and weight of everything that `weight_copies` copies.

    Layers that compute in float8 are left out: they round their weights directly to float8.
    """
    in_float8 = float8_layers(unet).values() if config.training.float8 else ()
    return layers_to_copy(unet, set(in_float8))


def build_weight_stream(
    config: RunConfig, trainable: Trainable, device: torch.device
) -> WeightStream | None:
    """Build the stream of the U-Net's blocks; None if `training.stream_weights` is off.

    The weights must already have their final dtype.
    """
    if not config.training.stream_weights:
        return None
    return WeightStream(trainable.network, recomputed_blocks(trainable.unet), device)


def copied_numel(config: RunConfig, trainable: Trainable) -> int:
    """Return the number of weights that have 16-bit copies; 0 if copies are off."""
    if not config.training.weight_copies:
        return 0
    return sum(weight.numel() for _, _, weight in copied_layers(config, trainable.unet))
