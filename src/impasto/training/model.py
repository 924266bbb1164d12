"""The base model as the settings ask for it: how it is read, and what of it is offloaded."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from impasto.config.run import RunConfig
from impasto.models.casting import cast_network
from impasto.models.completeness import named_as_in, require_complete
from impasto.models.keeping import Keep
from impasto.models.loading import BaseModel, empty_networks
from impasto.models.offload import keep_in_file, keep_in_ram, offload_to_file, wait_again
from impasto.models.opening import OpenOptions, open_model
from impasto.models.saving import DTYPES, MergedWithBase
from impasto.models.vae import tile

WAITING = "waiting-{part}-{process}.safetensors"
"""Files of the run directory that are there while it trains."""


def build_open_options(config: RunConfig) -> OpenOptions:
    """What the settings say about the base model."""
    model = config.model
    return OpenOptions(model.family, model.prediction_type, model.weights, model.variant, model.vae)


def open_merged(config: RunConfig) -> MergedWithBase | None:
    """The base model as its files have it, where exported models are mixed with it.

    Opened anew, so that it stays what it was: networks in float32 are trained in the memory that
    their file was read into. None where what was trained is exported alone.

    Raises:
        ModelError: A file is missing or damaged.
    """
    if config.saving.merge_ratio == 1:
        return None
    contents = open_model(config.model.path, build_open_options(config))
    contents = require_complete(contents, empty_networks(contents))
    return MergedWithBase(contents.parts, config.saving.merge_ratio)


def build_keepers(
    parts: Iterable[str], config: RunConfig, accelerator: Accelerator
) -> dict[str, Keep]:
    """How the tensors of networks are kept that wait: in files; beside a GPU in RAM."""
    if accelerator.device.type != "cpu":
        return dict.fromkeys(parts, keep_in_ram)
    return {
        part: partial(keep_in_file, file=_waiting_file(part, config, accelerator)) for part in parts
    }


def _waiting_file(part: str, config: RunConfig, accelerator: Accelerator) -> Path:
    return config.output_dir / WAITING.format(part=part, process=accelerator.process_index)


def with_offloaded(
    model: BaseModel, part: str, config: RunConfig, accelerator: Accelerator
) -> BaseModel:
    """The model with a part that is not needed now waiting as before, or in a file on a processor.

    Where there is a GPU, a part that never waited stays in RAM.
    """
    network = model.networks[part]
    if wait_again(network) or accelerator.device.type != "cpu":
        return model
    file = _waiting_file(part, config, accelerator)
    inside = network.state_dict()
    stored = {named_as_in(inside, n): dtype for n, dtype in model.stored[part].items()}
    waiting = offload_to_file(network, file, stored)
    named = {n: waiting[named_as_in(waiting, n)] for n in model.contents.parts[part]}
    parts = {**model.contents.parts, part: named}
    return replace(model, contents=replace(model.contents, parts=parts))


def build_encoding_vae(config: RunConfig, model: BaseModel) -> Any:
    """The VAE as images are encoded with: a copy where it is not in float32."""
    dtype = DTYPES[config.dataset.vae_precision]
    tile(model.vae, tiled=config.dataset.vae_tiling)
    return model.vae if model.vae.dtype == dtype else cast_network(copy.deepcopy(model.vae), dtype)
