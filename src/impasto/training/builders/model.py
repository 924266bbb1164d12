"""The base model as the settings ask for it: how it is read, and what of it is offloaded."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from impasto.checkpoints.tensors import Tensors, total_bytes
from impasto.config.run import RunConfig
from impasto.models.family import Family
from impasto.models.networks.casting import cast_network
from impasto.models.networks.keeping import Keep
from impasto.models.networks.loading import BaseModel
from impasto.models.networks.offload import keep_in_file, keep_in_ram, offload_to_file, wait_again
from impasto.models.networks.vae import tile
from impasto.models.reading.completeness import named_as_in
from impasto.models.reading.opening import OpenOptions
from impasto.models.writing.saving import DTYPES, MergedWithBase
from impasto.progress import Progress, in_mib

WAITING = "waiting-{component}-{process}.safetensors"
"""Files of the run directory that are there while it trains."""


BASE_FILES = WAITING.format(component="base-*", process=0)
"""Of those, the base model's weights that exported models are mixed with."""


def build_open_options(config: RunConfig) -> OpenOptions:
    """What the settings say about the base model."""
    model = config.model
    return OpenOptions(model.family, model.prediction_type, model.weights, model.variant, model.vae)


def keep_base(
    config: RunConfig,
    accelerator: Accelerator,
    model: BaseModel,
    progress: Progress,
    *,
    any_component: bool,
) -> MergedWithBase | None:
    """What exported models are mixed with: the weights before training, in a file of the run.

    So that nothing depends on the base model's files any more, and that networks in float32 may be
    trained in the memory that their file was read into. None where what was trained is exported
    alone, and in all processes but the first, which exports.

    Args:
        config: The settings.
        accelerator: The processes.
        model: The base model, before anything has changed it.
        progress: Is told how far it is.
        any_component: Whether any network may be trained, by a way of training that was given in
            code.

    Raises:
        StorageError: The file cannot be written.
    """
    if config.saving.merge_ratio == 1 or not accelerator.is_main_process:
        return None
    learning = learning_networks(config, model.family)
    components = model.family.names if any_component else learning
    kept = {component: _as_stored(model, component) for component in components}
    size = sum(map(total_bytes, kept.values()))
    base: dict[str, Tensors] = {}
    with progress.stage("Keeping the base model's weights", size >> 20, "MiB") as advance:
        count = in_mib(advance)
        for component, tensors in kept.items():
            file = _waiting_file(f"base-{component}", config, accelerator)
            base[component] = keep_in_file(tensors, file, count)
    return MergedWithBase(base, config.saving.merge_ratio)


def learning_networks(config: RunConfig, family: Family) -> list[str]:
    """The networks of which weights learn, by the settings."""
    encoders = family.text_encoders if config.trains_text_encoder else ()
    return [component.name for component in (family.unet, *encoders)]


def _as_stored(model: BaseModel, component: str) -> Tensors:
    """A network's tensors in the types of its files, where those are narrower than its own."""
    stored = model.stored[component]
    return {
        name: t.cast(stored[name]) if stored[name].itemsize < t.dtype.itemsize else t
        for name, t in model.contents.components[component].items()
    }


def build_keepers(
    components: Iterable[str], config: RunConfig, accelerator: Accelerator
) -> dict[str, Keep]:
    """How the tensors of networks are kept that wait: in files; beside a GPU in RAM."""
    if accelerator.device.type != "cpu":
        return dict.fromkeys(components, keep_in_ram)
    return {
        component: partial(keep_in_file, file=_waiting_file(component, config, accelerator))
        for component in components
    }


def _waiting_file(component: str, config: RunConfig, accelerator: Accelerator) -> Path:
    return config.output_dir / WAITING.format(
        component=component, process=accelerator.process_index
    )


def with_offloaded(
    model: BaseModel, component: str, config: RunConfig, accelerator: Accelerator
) -> BaseModel:
    """The model with a part that is not needed now waiting as before, or in a file on a CPU.

    Where there is a GPU, a part that never waited stays in RAM.
    """
    network = model.networks[component]
    if wait_again(network) or accelerator.device.type != "cpu":
        return model
    file = _waiting_file(component, config, accelerator)
    inside = network.state_dict()
    stored = {named_as_in(inside, n): dtype for n, dtype in model.stored[component].items()}
    waiting = offload_to_file(network, file, stored)
    named = {n: waiting[named_as_in(waiting, n)] for n in model.contents.components[component]}
    components = {**model.contents.components, component: named}
    return replace(model, contents=replace(model.contents, components=components))


def build_encoding_vae(config: RunConfig, model: BaseModel) -> Any:
    """The VAE as images are encoded with: a copy where it is not in float32."""
    dtype = DTYPES[config.dataset.vae_precision]
    tile(model.vae, tiled=config.dataset.vae_tiling)
    return model.vae if model.vae.dtype == dtype else cast_network(copy.deepcopy(model.vae), dtype)
