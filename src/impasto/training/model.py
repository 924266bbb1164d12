"""The base model as the settings ask for it: how it is read, and what of it is offloaded."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from accelerate import Accelerator

from impasto.config.run import RunConfig
from impasto.models.casting import cast_network
from impasto.models.completeness import named_as_in
from impasto.models.loading import BaseModel
from impasto.models.offload import offload_to_file
from impasto.models.opening import OpenOptions
from impasto.models.saving import DTYPES
from impasto.models.vae import tile

WAITING = "waiting-{part}-{process}.safetensors"
"""Files of the run directory that are there while it trains."""


def build_open_options(config: RunConfig) -> OpenOptions:
    """What the settings say about the base model."""
    model = config.model
    return OpenOptions(model.family, model.prediction_type, model.weights, model.variant, model.vae)


def with_offloaded(
    model: BaseModel, part: str, config: RunConfig, accelerator: Accelerator
) -> BaseModel:
    """The model with a part that is not needed now in a file; on a processor only.

    Where there is a GPU, such parts wait in RAM.
    """
    if accelerator.device.type != "cpu":
        return model
    name = WAITING.format(part=part, process=accelerator.process_index)
    network, file = model.networks[part], config.output_dir / name
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
