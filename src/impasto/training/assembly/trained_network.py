"""What learns in a run, where it computes, and the optimizer that steps it."""

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
    """Build what learns, computing the way the settings ask for.

    Args:
        config: The settings of a run.
        accelerator: Where it computes.
        model: The base model; its U-Net gets the attention kernel that is asked for.
        sizes: How many shapes of batches there are, for the compiler.
        overrides: What is given in code.

    Raises:
        ConfigError: A setting does not go with the model, or what code gives cannot be exported.
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
    """What learns, where it computes, and what steps it.

    Attributes:
        unet: What training calls.
        stream: Brings its weights to the device block by block; None where all are there.
        optimizer: Steps the weights.
        module_by_group: The name of the part that each of its groups is of.
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
    """Bring what learns to where it computes, and build its optimizer.

    Args:
        config: The settings.
        accelerator: Where it computes.
        strategy: How processes hold what learns.
        overrides: What is given in code.
        trainable: What learns.
        note: Is told of settings without effect in a run that was begun with them.

    Raises:
        ConfigError: An optimizer that was given in code does not keep to the settings.
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
        StartPull(optimizer, config.optimizer.start_decay)  # lives in a hook of its steps
    module_by_group = module_names(optimizer, trainable.modules)
    strategy.start(trainable.modules, optimizer)
    return Learning(unet, stream, optimizer, module_by_group)


def _require_exportable(config: RunConfig, trainable: Trainable, model: BaseModel) -> None:
    """Make sure that what learns has a place in the exported model.

    Raises:
        ConfigError: A way of training that was given in code exports what is no network.
    """
    if config.method.kind != "full":
        return
    foreign = sorted(set(trainable.export()) - set(model.networks))
    if foreign:
        raise ConfigError(
            f"{type(trainable).__name__}.export() gives {foreign[0]!r}, which is no network of the "
            f"model; it has {', '.join(model.networks)}. Give tensors of these, with what was "
            f"learned added to them."
        )


def _require_chunks(optimizer: torch.optim.Optimizer, rules: ChunkRules) -> None:
    """Make sure that an optimizer that was given in code keeps to what the settings ask of it.

    Raises:
        ConfigError: It does not.
    """
    if rules.need is not None and not isinstance(optimizer, ChunkedOptimizer):
        raise ConfigError(
            f"{rules.need} is asked of every optimizer, and {type(optimizer).__name__}, which was "
            f"given in code, does not do it: make it with ChunkedOptimizer(groups, build, rules) "
            f"of impasto.training.optim.chunked, or take the setting out."
        )
