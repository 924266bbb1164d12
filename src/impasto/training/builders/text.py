"""Builds the conditioners, which turn captions and prompts into text embeddings, from settings."""

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
from impasto.data.engines.process_group import CachePeers
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
"""Device type -> the most chunks that a frozen encoder encodes at once: a single chunk leaves a GPU
waiting, and on a CPU more than one is not faster."""


@dataclass(frozen=True)
class Conditioners:
    """The conditioners of a run, one per use of its text encoders.

    Attributes:
        training: Encodes training captions, with gradients if the encoder is trained.
        watching: Encodes captions without gradients, for validation.
        prompts: Encodes preview prompts; the sampler decides which empty ones become zeros.
    """

    training: ClipTextConditioner
    watching: ClipTextConditioner
    prompts: ClipTextConditioner


def build_layout(config: RunConfig) -> TextLayout:
    """Build the text layout of captions: token limit, chunks, and how chunks are joined."""
    model = config.model
    return TextLayout(model.max_tokens, model.token_join, model.token_split, model.caption_emphasis)


def build_sizes(config: RunConfig, model: BaseModel) -> SizeConditioning | None:
    """Build the size conditioning of the U-Net; None if its family has none.

    Raises:
        ConfigError: The setting differs from its default, but the family has no size conditioning.
    """
    sizes, asked = model.family.sizes, config.model.size_conditioning
    if sizes is None:
        if asked != "original":
            raise ConfigError(
                f"model.size_conditioning {asked} has no effect: {model.contents.name} is "
                f"{model.family.name}, which has no size conditioning. Remove it."
            )
        return None
    return replace(sizes, as_drawn=asked == "target")


def zeroes_empty_text(config: RunConfig, model: BaseModel) -> bool:
    """Return whether the text embeddings of empty captions are zeros, by the settings.

    Raises:
        ConfigError: The settings choose zeros, but the model's family does not support it.
    """
    is_asked = config.model.empty_text == "zeros"
    if is_asked:
        require_zeroes_empty_text(model, "model.empty_text zeros")
    return is_asked


def zeroes_empty_negative(config: RunConfig, model: BaseModel) -> bool:
    """Return whether empty negative prompts become zeros in previews and in the exported model.

    As the base model's files say, unless the settings choose it.

    Raises:
        ConfigError: The settings choose zeros, but the model's family does not support it.
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
    """Move the text encoders to the device, and build the run's conditioners.

    Args:
        config: The settings of the run.
        device: The device of the U-Net.
        wrap: Wraps a trained encoder for the parallel strategy.
        model: The base model.
        trainable: The trainable networks.
        progress: Receives progress while captions are encoded ahead.
        hash_of: Returns the hash of a frozen encoder's weights, from its name and network; it may
            be cached.
        given: Text encoder outputs that are read from files instead of encoded; None for none.
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
    # a fixed number, however many captions of a batch are new (padded); at most the batch size
    at_once = min(ENCODED_AT_ONCE.get(device.type, 1), max(config.batch_sizes.values()))
    limit = config.training.text_cache_mib << 20
    memory = TextCache(limit, device, store, progress, at_once, given)
    eval_memory = memory
    if device.type == "cuda":  # where training captions are encoded on a separate stream
        eval_memory = TextCache(limit, device, store, progress, at_once, given)
    prompt_memory = eval_memory
    if given is not None and given.shape.chunks > 1:  # emphasis may preserve the mean of all chunks
        prompt_memory = TextCache(limit, device, store, progress, at_once)
    return Conditioners(
        conditioner(tokens, states, memory=memory),
        conditioner(tokens, states, memory=eval_memory),
        prompts(prompt_tokens, states, memory=prompt_memory),
    )


def encode_captions_ahead(
    conditioners: Conditioners,
    captions: Sequence[str],
    prompts: Sequence[Prompt],
    peers: CachePeers,
) -> None:
    """Cache the hidden states of captions and preview prompts on disk, divided among processes.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
    """
    conditioners.training.precompute(captions, peers)
    texts = [text for prompt in prompts for text in (prompt.text, prompt.negative)]
    conditioners.prompts.precompute(texts, peers)


def _build_store(
    config: RunConfig,
    device: torch.device,
    trainable: Trainable,
    hash_of: Callable[[str, nn.Module], str],
) -> TextStore:
    """Build the disk store of hidden states, in the precision that the U-Net reads them with.

    States computed in TF32 have separate keys if they are stored in float32; in 16 bits, rounding
    is larger than the difference.
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
    """Return a text of what an encoder's states depend on besides token ids and weights."""
    reading = encoder.reading
    others = ("" if reading.final_norm else ":raw") + (":pooled" if reading.pooled else "")
    return f"skip={encoder.layer}{others}"
