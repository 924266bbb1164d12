"""Builds what turns captions and prompts into conditions, from the settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from impasto.config.run import RunConfig
from impasto.data.caching.text_npz import GivenTexts
from impasto.data.caching.text_store import TEXTS, TextStore
from impasto.data.engines.process_group import CacheShare
from impasto.errors import ConfigError
from impasto.models.family import SizeConditioning
from impasto.models.networks.loading import BaseModel
from impasto.models.networks.tokenizers import build_tokens
from impasto.models.networks.vae import computes_in_tf32
from impasto.models.text.text_conditioner import ClipTextConditioner, require_zeroes_empty_text
from impasto.models.text.text_memory import TextCache
from impasto.models.text.text_states import ClipHiddenStates
from impasto.models.tokenization.text_metadata import with_max_tokens
from impasto.models.tokenization.tokens import TextLayout
from impasto.models.trainable import Trainable
from impasto.progress import Progress
from impasto.sampling.prompts import Prompt
from impasto.training.compute.precision import computed_kind

ENCODED_AT_ONCE = {"cuda": 16}
"""The most chunks of a frozen encoder at a time: one leaves a GPU waiting for the next, and on a
CPU more than one gain nothing."""


@dataclass(frozen=True)
class Conditioners:
    """The uses of a model's text encoders.

    Attributes:
        training: For captions, with gradients where the encoder learns.
        watching: For captions without gradients: validation.
        prompts: For previews; the sampler says which of their texts are zeros.
    """

    training: ClipTextConditioner
    watching: ClipTextConditioner
    prompts: ClipTextConditioner


def build_layout(config: RunConfig) -> TextLayout:
    """Build the layout of captions: tokens, chunks, how they are joined."""
    model = config.model
    return TextLayout(model.max_tokens, model.token_join, model.token_split, model.caption_emphasis)


def build_sizes(config: RunConfig, model: BaseModel) -> SizeConditioning | None:
    """What the U-Net is told of sizes; None where it is told none.

    Raises:
        ConfigError: Something else than usual is asked for, and it is told none.
    """
    sizes, asked = model.family.sizes, config.model.size_conditioning
    if sizes is None:
        if asked != "original":
            raise ConfigError(
                f"model.size_conditioning {asked} has no effect: {model.contents.name} is "
                f"{model.family.name}, which takes no sizes. Take it out."
            )
        return None
    return replace(sizes, as_drawn=asked == "target")


def zeroes_empty_text(config: RunConfig, model: BaseModel) -> bool:
    """Whether empty captions are zeros: only where the settings say so.

    Raises:
        ConfigError: The settings ask for zeros, and the model's family has no such thing.
    """
    is_asked = config.model.empty_text == "zeros"
    if is_asked:
        require_zeroes_empty_text(model, "model.empty_text zeros")
    return is_asked


def zeroes_empty_negative(config: RunConfig, model: BaseModel) -> bool:
    """Whether empty negative prompts are zeros in previews, and what the exported model says.

    The base model's own word, unless the settings say something.

    Raises:
        ConfigError: As `zeroes_empty_text`.
    """
    if config.model.empty_text == "auto":
        return model.contents.zeroes_empty_text
    return zeroes_empty_text(config, model)


def build_conditioners(
    config: RunConfig,
    device: torch.device,
    wrap: Callable[[nn.Module], Any],
    model: BaseModel,
    trainable: Trainable,
    progress: Progress,
    hash_of: Callable[[str, nn.Module], str],
    given: GivenTexts | None = None,
) -> Conditioners:
    """Put the text encoder where it computes, and make its users.

    Args:
        config: The settings.
        device: Where the U-Net is.
        wrap: Makes of an encoder that learns what training calls.
        model: The base model.
        trainable: What learns.
        progress: Is told while captions are encoded ahead.
        hash_of: Tells the hash of the weights of a frozen encoder by its name and network: it may
            be known already.
        given: Texts that are taken from files in the place of encoding them.
    """
    layout = build_layout(config)
    tokens = build_tokens(model, layout)
    prompt_tokens = build_tokens(model, with_max_tokens(layout, config.previews.emphasis))
    states = trainable.states
    prompts = partial(
        ClipTextConditioner, shape=states.shape, sizes=build_sizes(config, model), device=device
    )
    conditioner = partial(prompts, zeroes_empty_text=zeroes_empty_text(config, model))
    if any(trained.reads_text for trained in trainable.modules):
        return Conditioners(
            conditioner(tokens, wrap(states), train=True),
            conditioner(tokens, states),
            prompts(prompt_tokens, states),
        )
    states.to_device(device)
    on_disk = config.training.cache_text_to_disk
    store = _build_store(config, device, trainable, hash_of) if on_disk else None
    # always so many, whatever is new in a batch (the rest is filled up); no more than it has
    at_once = min(ENCODED_AT_ONCE.get(device.type, 1), max(config.batch_sizes.values()))
    limit = config.training.text_cache_mib << 20
    memory = TextCache(limit, device, store, progress, at_once, given)
    looking = memory
    if device.type == "cuda":  # where captions are encoded on a stream of their own
        looking = TextCache(limit, device, store, progress, at_once, given)
    drawing = looking
    if given is not None and given.shape.chunks > 1:  # emphasis may keep the mean of all
        drawing = TextCache(limit, device, store, progress, at_once)
    return Conditioners(
        conditioner(tokens, states, memory=memory),
        conditioner(tokens, states, memory=looking),
        prompts(prompt_tokens, states, memory=drawing),
    )


def encode_captions_ahead(
    conditioners: Conditioners,
    captions: Sequence[str],
    prompts: Sequence[Prompt],
    share: CacheShare,
) -> None:
    """Put the states of captions and preview prompts on disk; each process encodes its share.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
    """
    conditioners.training.precompute(captions, share)
    texts = [text for prompt in prompts for text in (prompt.text, prompt.negative)]
    conditioners.prompts.precompute(texts, share)


def _build_store(
    config: RunConfig,
    device: torch.device,
    trainable: Trainable,
    hash_of: Callable[[str, nn.Module], str],
) -> TextStore:
    """States in the precision that the U-Net reads them with.

    Those of TF32 have names of their own where they are kept in float32: to 16 bits they are
    rounded by more.
    """
    exact = computed_kind(config) == "no"
    fingerprint = "+".join(
        f"{hash_of(name, encoder.text_encoder)}:{_described(encoder)}"
        for name, encoder in trainable.states.by_name().items()
    )
    if exact and computes_in_tf32(device, torch.float32):
        fingerprint += "/tf32"
    folder = config.dataset.derived_dir / TEXTS
    return TextStore(folder, fingerprint, torch.float32 if exact else torch.float16)


def _described(encoder: ClipHiddenStates) -> str:
    """What an encoder's states depend on besides the ids and its weights."""
    reading = encoder.reading
    others = ("" if reading.final_norm else ":raw") + (":pooled" if reading.pooled else "")
    return f"skip={encoder.layer}{others}"
