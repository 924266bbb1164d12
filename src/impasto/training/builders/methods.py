"""Builds the trainable networks from the settings: the model itself, or a hypernetwork for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from impasto.checkpoints.hypernetwork_writing import require_writable_as
from impasto.checkpoints.hypernetworks import Structure, read_hypernetwork
from impasto.config.hypernetwork import HypernetworkMethod
from impasto.config.method import FullMethod
from impasto.config.run import RunConfig
from impasto.data.loading.templates import CaptionTemplates, read_templates
from impasto.errors import ConfigError
from impasto.models.networks.hypernetwork import Hypernetwork, context_widths, initialize
from impasto.models.networks.loading import BaseModel
from impasto.models.trainable import (
    FullFineTune,
    HypernetworkTraining,
    TextEncoderTraining,
    Trainable,
    block_of,
    found_by,
)
from impasto.randomness import derive_seed
from impasto.training.builders.given_text import ending_of_texts
from impasto.training.builders.model_files import dialect
from impasto.training.builders.text import build_sizes, zeroes_empty_text
from impasto.training.compute.precision import computed_kind
from impasto.training.optim.mixed_precision import autocast_dtype

BuildTrainable = Callable[[RunConfig, BaseModel], Trainable]
"""Builds the trainable networks from the settings and a base model."""


def build_trainable(config: RunConfig, model: BaseModel) -> Trainable:
    """Build the trainable networks that the settings select.

    Raises:
        ConfigError: The activation does not exist, or a setting has no effect on this model.
        ModelError: The hypernetwork to start from cannot be read or does not fit the model.
    """
    build_sizes(config, model)  # these raise an error for settings without effect
    zeroes_empty_text(config, model)
    ending_of_texts(config, model)
    method = config.method
    if method.kind == "hypernetwork":
        return _build_hypernetwork(config, method, model)
    return _build_full(config, method, model)


def _build_full(config: RunConfig, method: FullMethod, model: BaseModel) -> Trainable:
    _require_blocks(method.block_lrs, model)
    _require_found(method.train_only, model)
    if not config.is_begun:
        _require_trained(method, model)
    trainable = FullFineTune(
        model,
        lr=config.optimizer.lr,
        text_encoder=_text_encoder_training(config, method, model),
        block_lrs={str(block): rate for block, rate in method.block_lrs.items()},
        clip_skip=config.model.clip_skip,
        gradient_checkpointing=config.training.gradient_checkpointing,
        checkpointed_levels=config.training.checkpointed_levels,
        only=method.train_only,
    )
    if not trainable.modules[0].parameters():
        if method.train_only:
            raise ConfigError(
                "method.train_only and method.block_lrs together leave all of the U-Net untrained: "
                "all weights that the patterns match are in blocks with a rate of 0. Change one of "
                "them."
            )
        raise ConfigError(
            "method.block_lrs leaves every block of the U-Net untrained, with rates of 0; at least "
            "one must be trained. Give a block a rate above 0."
        )
    return trainable


def _text_encoder_training(
    config: RunConfig, method: FullMethod, model: BaseModel
) -> TextEncoderTraining | None:
    """Return how text encoders are trained; None if they are frozen.

    Raises:
        ConfigError: A rate is for an encoder that the model does not have, or all rates are 0.
    """
    if not method.train_text_encoder:
        return None
    names = [*model.text_encoders]
    unknown = [name for name in method.text_encoder_lrs if name not in names]
    if unknown:
        raise ConfigError(
            f"method.text_encoder_lrs has a rate for {unknown[0]}, and {model.contents.name} has "
            f"no such text encoder; it has {' and '.join(names)}. Remove it."
        )
    if method.text_encoder_lr is not None and method.text_encoder_lrs.keys() >= set(names):
        raise ConfigError(
            f"method.text_encoder_lr has no effect: method.text_encoder_lrs names all text "
            f"encoders of {model.contents.name}. Remove one of the two."
        )
    rates = {name: method.text_encoder_rate(name, config.optimizer.lr) for name in names}
    if not any(rates.values()):
        raise ConfigError(
            "method.text_encoder_lrs leaves every text encoder untrained, with rates of 0. Set "
            "method.train_text_encoder = false, which also caches their outputs."
        )
    return TextEncoderTraining(
        rates,
        method.text_encoder_layers,
        method.text_encoder_from_step,
        method.text_encoder_until_step,
    )


def _require_blocks(block_lrs: Mapping[str, float], model: BaseModel) -> None:
    """Raise ConfigError for a rate of a block that the U-Net does not have.

    Such a rate would have no effect. So would one of a block whose sub-blocks all have rates.
    """
    names = [name for name, _ in model.unet.named_parameters()]
    for block in block_lrs:
        if not any(block_of(name, block_lrs) == block for name in names):
            raise ConfigError(
                f"method.block_lrs has a rate for {block}, and the U-Net of {model.contents.name} "
                f"has no such block, or other names cover all of it. Remove it."
            )


def _require_trained(method: FullMethod, model: BaseModel) -> None:
    """Raise ConfigError if `train_only` freezes all blocks with a rate above 0.

    If it trains weights of one of them, rates of the others are accepted, so that a table may list
    all blocks.
    """
    rates, only = method.block_lrs, method.train_only
    given = [block for block, rate in rates.items() if rate]
    found = {name for pattern in only for name in found_by(model.unet, pattern)}
    if only and given and not any(block_of(name, rates) in given for name in found):
        raise ConfigError(
            f"method.block_lrs has a rate for {', '.join(given)}, of which method.train_only "
            f"trains nothing. Remove it, or add a pattern for it."
        )


def _require_found(patterns: Sequence[str], model: BaseModel) -> None:
    """Raise ConfigError for a pattern that matches no weight of the U-Net."""
    for pattern in patterns:
        if not found_by(model.unet, pattern):
            names = sorted(name for name, _ in model.unet.named_parameters())
            raise ConfigError(
                f"method.train_only has the pattern {pattern!r}, which matches no weight of the "
                f"U-Net of {model.contents.name}. Its names are such as {names[0]} and "
                f"{names[len(names) // 2]}; * matches anything, including dots."
            )


def _build_hypernetwork(
    config: RunConfig, method: HypernetworkMethod, model: BaseModel
) -> Trainable:
    network = new_hypernetwork(method, model, config.seed)
    require_writable_as(network.structure, dialect(config))  # before days of training
    return HypernetworkTraining(
        model,
        network,
        config.export_name,
        lr=config.optimizer.lr,
        clip_skip=config.model.clip_skip,
        gradient_checkpointing=config.training.gradient_checkpointing,
        checkpointed_levels=config.training.checkpointed_levels,
        frozen_dtype=autocast_dtype(computed_kind(config)),
    )


def new_hypernetwork(asked: HypernetworkMethod, model: BaseModel, seed: int) -> Hypernetwork:
    """Return the initial hypernetwork: from the file `start_from`, or initialized by the seed.

    Raises:
        ConfigError: `widths` has a width that the model's cross-attention contexts do not have.
        ModelError: The file cannot be read.
    """
    if asked.start_from is not None:
        return Hypernetwork.of(read_hypernetwork(asked.start_from))
    structure = Structure(
        asked.layers,
        asked.activation,
        layer_norm=asked.layer_norm,
        activate_output=asked.activate_output,
        dropout=asked.dropout,
    )
    there = context_widths(model.unet)
    unknown = sorted(set(asked.widths or ()) - set(there))
    if unknown:
        raise ConfigError(
            f"method.widths has {', '.join(map(str, unknown))}, but the attention contexts of this "
            f"model have the widths {', '.join(map(str, there))}. Use these, or remove "
            f"method.widths."
        )
    network = Hypernetwork(asked.widths or there, structure)
    initialize(network, asked.initialization, derive_seed(seed, "hypernetwork"))
    return network


def build_templates(config: RunConfig) -> CaptionTemplates | None:
    """Return the caption templates of a hypernetwork; None if the settings have none.

    Raises:
        ConfigError: A template is invalid, or the file cannot be read.
    """
    asked = config.hypernetwork
    if asked is None or (not asked.templates and asked.template_file is None):
        return None
    return read_templates(asked.templates, asked.template_file, config.export_name)
