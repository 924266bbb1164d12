"""Reads the base model as the settings select, and offloads parts that are not in use."""

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
"""Name of files in the run directory with offloaded weights, which exist while the run trains."""


BASE_FILES = WAITING.format(component="base-*", process=0)
"""Pattern of those files that hold base model weights for mixing into exported models."""


def build_open_options(config: RunConfig) -> OpenOptions:
    """Return the settings for opening the base model."""
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
    """Store the weights before training in files of the run, for mixing into exported models.

    With that copy the run no longer depends on the base model's files, and float32 networks can be
    trained in the memory that their file was read into.

    Args:
        config: The settings of the run.
        accelerator: The processes of the run.
        model: The base model, before anything has changed it.
        progress: Receives progress.
        any_component: Whether any network may be trained, since the trainable is given in code.

    Returns:
        The stored weights with the ratio; None if exports are not mixed (`saving.merge_ratio` is
        1), and in all processes but the main process, which exports.

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
    with progress.stage("Storing the base model's weights", size >> 20, "MiB") as advance:
        count = in_mib(advance)
        for component, tensors in kept.items():
            file = _waiting_file(f"base-{component}", config, accelerator)
            base[component] = keep_in_file(tensors, file, count)
    return MergedWithBase(base, config.saving.merge_ratio)


def learning_networks(config: RunConfig, family: Family) -> list[str]:
    """Return the names of the networks that the settings train."""
    encoders = family.text_encoders if config.trains_text_encoder else ()
    return [component.name for component in (family.unet, *encoders)]


def _as_stored(model: BaseModel, component: str) -> Tensors:
    """Return a network's tensors, in the dtypes of the model's file where those are narrower."""
    stored = model.stored[component]
    return {
        name: t.cast(stored[name]) if stored[name].itemsize < t.dtype.itemsize else t
        for name, t in model.contents.components[component].items()
    }


def build_keepers(
    components: Iterable[str], config: RunConfig, accelerator: Accelerator
) -> dict[str, Keep]:
    """Return network -> how its offloaded tensors are kept: in RAM with a GPU, else files."""
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
    """Offload a network that is not needed at the moment, and return the model with it.

    A network that was offloaded before is offloaded again the same way. Any other is offloaded to a
    file on a CPU; with a GPU it stays in RAM, and the model is returned unchanged.
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
    """Return the VAE that encodes images, in `dataset.vae_precision`, with its tiling set.

    It is a copy if the precision differs from the model's VAE.
    """
    dtype = DTYPES[config.dataset.vae_precision]
    tile(model.vae, tiled=config.dataset.vae_tiling)
    return model.vae if model.vae.dtype == dtype else cast_network(copy.deepcopy(model.vae), dtype)
