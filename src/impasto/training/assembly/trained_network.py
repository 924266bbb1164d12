"""Builds the trained network of a run on its device, and its optimizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator

from impasto.config.cases import SETTINGS_ALONE, Case
from impasto.config.run import RunConfig
from impasto.errors import ConfigError
from impasto.models.networks.attention import use_kernel
from impasto.models.networks.attention_kernels import build_kernel
from impasto.models.networks.loading import BaseModel
from impasto.models.trainable import Trainable
from impasto.training.builders.overrides import Overrides, require_trainable
from impasto.training.compute.channels_last import keep_order, use_channels_last
from impasto.training.compute.compile import compile_unet
from impasto.training.compute.float8 import use_float8
from impasto.training.compute.param_dtypes import build_chunk_rules, build_weight_stream
from impasto.training.optim.chunked import ChunkedOptimizer, ChunkRules
from impasto.training.optim.optimizers import build_optimizer, require_weights_alone
from impasto.training.optim.start_pull import StartPull
from impasto.training.optim.state import module_names
from impasto.training.optim.streaming import WeightStream
from impasto.training.parallel.strategy import ParallelStrategy


def build_network(
    config: RunConfig, accelerator: Accelerator, model: BaseModel, sizes: int, overrides: Overrides
) -> Trainable:
    """Build the trained parameters, and apply attention, memory format, float8 and compilation.

    Args:
        config: The settings of a run.
        accelerator: The device of the run.
        model: The base model; its U-Net gets the attention kernel of the settings.
        sizes: Number of batch shapes, for the compiler.
        overrides: Functions and objects that the caller gave in code.

    Raises:
        ConfigError: A setting does not fit the model, or a trainable given in code cannot be
            exported.
    """
    training, device = config.training, accelerator.device
    if training.attention != "sdpa":
        use_kernel(model.unet, build_kernel(training.attention, device))
    trainable = overrides.build_trainable()(config, model)
    if overrides.trainable is not None:
        require_trainable(trainable)
    _require_exportable(config, trainable, model)
    if training.channels_last:
        use_channels_last(trainable.unet, device)
    if training.float8:
        use_float8(trainable.unet, device)
    compile_unet(
        trainable.unet,
        training.compile,
        sizes=sizes,
        cuda_graphs=training.cuda_graphs == "network",
        cache=config.dataset.machine_dir / "compiled",
        device=device,
    )
    return trainable


@dataclass(frozen=True)
class Learning:
    """The trained network on its device, and its optimizer.

    Attributes:
        unet: The network that training calls, as the parallel strategy wraps it.
        stream: Brings weights to the device block by block; None if all of them stay there.
        optimizer: Updates the weights.
        module_by_group: The name of the model part that each of its groups belongs to.
    """

    unet: Any
    stream: WeightStream | None
    optimizer: torch.optim.Optimizer
    module_by_group: tuple[str, ...]


def build_learning(
    config: RunConfig,
    accelerator: Accelerator,
    strategy: ParallelStrategy,
    overrides: Overrides,
    trainable: Trainable,
    note: Callable[[str], None],
) -> Learning:
    """Move the trained network to its device or shard it, and build its optimizer.

    Args:
        config: The settings.
        accelerator: The device and processes of the run.
        strategy: How the trained weights are distributed over processes.
        overrides: Functions and objects that the caller gave in code.
        trainable: The trained parameters.
        note: Receives notes on settings without effect, in a run that was started with them.

    Raises:
        ConfigError: An optimizer given in code does not do what the settings require.
    """
    if not config.is_begun and overrides.build_optimizer is build_optimizer:
        require_weights_alone(config.optimizer, Case(config, SETTINGS_ALONE).goes_by_chunks)
    rules = build_chunk_rules(config, trainable.modules, accelerator)
    stream = build_weight_stream(config, trainable, accelerator.device)
    unet = strategy.wrap(trainable.network) if stream is None else stream.allocate()
    trainable.modules = strategy.prepare(trainable.modules)
    optimizer = overrides.optimizer(trainable.modules, config, rules, note)
    _require_chunks(optimizer, rules)
    if config.training.channels_last:
        keep_order(optimizer)
    if config.optimizer.start_decay:
        StartPull(optimizer, config.optimizer.start_decay)  # the optimizer's step hook keeps it
    module_by_group = module_names(optimizer, trainable.modules)
    strategy.start(trainable.modules, optimizer)
    return Learning(unet, stream, optimizer, module_by_group)


def _require_exportable(config: RunConfig, trainable: Trainable, model: BaseModel) -> None:
    """Make sure that each exported part of a full fine-tune is a network of the model.

    Raises:
        ConfigError: A trainable given in code exports a part that the model does not have.
    """
    if config.method.kind != "full":
        return
    foreign = sorted(set(trainable.export()) - set(model.networks))
    if foreign:
        raise ConfigError(
            f"{type(trainable).__name__}.export() returns {foreign[0]!r}, which is not a network "
            f"of the model; it has {', '.join(model.networks)}. Return the tensors of these "
            f"networks, with the learned changes added to them."
        )


def _require_chunks(optimizer: torch.optim.Optimizer, rules: ChunkRules) -> None:
    """Make sure that an optimizer given in code supports chunks if the settings require them.

    Raises:
        ConfigError: The settings require chunks, and the optimizer is not a `ChunkedOptimizer`.
    """
    if rules.need is not None and not isinstance(optimizer, ChunkedOptimizer):
        raise ConfigError(
            f"{rules.need} is required of every optimizer, but {type(optimizer).__name__}, which "
            f"was given in code, does not support it. Build it with ChunkedOptimizer(groups, "
            f"build, rules) of impasto.training.optim.chunked, or remove the setting."
        )
