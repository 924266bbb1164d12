"""Resolves `auto` settings before a run starts, and checks that the run fits into memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import psutil
import torch

from impasto import ram
from impasto.config.run import RunConfig
from impasto.data.loading.sampler import Group
from impasto.data.records import PlannedImage
from impasto.datasets.batching import batch_size_of, heaviest_group, showings_by_group
from impasto.datasets.build import Survey
from impasto.models.networks.loading import load_meta_model
from impasto.progress import Progress, counted
from impasto.training.builders.model import build_open_options
from impasto.training.builders.processes import facts_of
from impasto.training.compute.precision import native_precision
from impasto.training.devices import default_device
from impasto.training.parallel.accelerate_config import read_sharding
from impasto.training.planning.changes import with_fields
from impasto.training.planning.fitter import MemoryFitter, describe_footprint, gib
from impasto.training.planning.memory import Footprint, FootprintPredictor
from impasto.training.planning.meta_models import MetaModels
from impasto.training.planning.workload import Workload

RECORD = "footprints.json"


def resolve_settings(
    config: RunConfig,
    survey: Survey,
    progress: Progress,
    *,
    check: bool = True,
    processes: int = 1,
    models: MetaModels | None = None,
) -> RunConfig:
    """Return the settings with `training.memory` and an `auto` batch size resolved to values.

    Args:
        config: The settings, completed from the model's metadata.
        survey: The images of the run and their buckets.
        progress: Receives notes about the choices.
        check: Whether the run starts now: then free memory limits it even if `training.memory`
            allows more, and it is checked that the run fits unless `training.fit_check` is off.
        processes: Number of processes of the run.
        models: The base model without values; None creates it.

    Raises:
        OutOfMemoryError: The run will not fit, and `training.fit_check` is on.
        ImpastoError: The model cannot be read.
    """
    training = config.training
    is_open = training.memory is not None or training.batch_size == "auto"
    if not is_open and not (check and training.fit_check):
        return config
    images = survey.plan.images
    group = heaviest_group(config, images)
    fitting = build_memory_fitter(config, group, processes, Workload.of(config, survey), models)
    free = free_memory(default_device())
    if check:
        fitting = replace(fitting, budget=min(fitting.budget, free))
    elif free < fitting.budget:
        progress.note(
            f"On this machine {gib(free)} are free: a run here would choose settings for that."
        )
    with progress.stage("Predicting memory", None, "settings"):
        return _resolved(config, fitting, images, progress, check=check and training.fit_check)


def _resolved(
    config: RunConfig,
    fitting: MemoryFitter,
    images: Sequence[PlannedImage],
    progress: Progress,
    *,
    check: bool,
) -> RunConfig:
    if config.training.memory is not None:
        config = _resolve_memory(config, fitting, progress)
    if config.training.batch_size == "auto":
        group = heaviest_group(config, images, batch_size=_open_batch_size)
        most = _most_filled(config, images, group)
        config = _resolve_batch(config, replace(fitting, group=group), most, progress)
        group = heaviest_group(config, images)  # may now belong to a dataset with its own size
        fitting = replace(fitting, group=group)
    config = _resolve_encoding(config, fitting, progress)
    if check and (doubt := fitting.require_fit(config)) is not None:
        progress.note(f"Warning: {doubt}")
    return config


def build_memory_fitter(
    config: RunConfig,
    group: Group,
    processes: int = 1,
    workload: Workload | None = None,
    models: MetaModels | None = None,
) -> MemoryFitter:
    """Build the memory fitter for the default device.

    Args:
        config: The settings of the run.
        group: The dataset and bucket whose batches have the most pixels.
        processes: Number of processes of the run.
        workload: The work beside training; None counts training alone.
        models: The base model without values; None creates it.
    """
    device = default_device()
    made = models or MetaModels(
        partial(load_meta_model, config.model.path, build_open_options(config))
    )
    sharding = read_sharding(processes)
    meter = FootprintPredictor(
        made, device.type, config.dataset.machine_dir / RECORD, sharding, workload
    )
    asked = config.training.memory
    budget = asked << 30 if isinstance(asked, int) else free_memory(device)
    half = native_precision(device).kind
    pinnable = free_memory(torch.device("cpu")) // (2 if os.name == "nt" else 1)
    facts = facts_of(config, processes)
    return MemoryFitter(meter, device.type, group, budget, facts, half, pinnable)


def predict(config: RunConfig, survey: Survey) -> Footprint:
    """Return the predicted footprint of a run with its largest batch on the default device.

    Raises:
        ImpastoError: The model cannot be read, or the settings do not fit it.
    """
    group = heaviest_group(config, survey.plan.images)
    fitting = build_memory_fitter(config, group, workload=Workload.of(config, survey))
    return fitting.footprint(config)


def free_memory(device: torch.device) -> int:
    """Return the bytes that this process may use on a device.

    On a GPU this is the free memory; on a CPU the free RAM plus the RAM that the process holds.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return ram.free_bytes() + int(psutil.Process().memory_info().rss)


def _resolve_memory(config: RunConfig, fitting: MemoryFitter, progress: Progress) -> RunConfig:
    chosen, rungs = fitting.choose_levers(config, keep_asked=True)
    asked = config.training.memory
    limit = gib(fitting.budget)
    is_allowed = isinstance(asked, int) and fitting.budget == asked << 30
    room = f"training.memory allows {limit}" if is_allowed else f"{limit} are free"
    footprint = fitting.footprint(chosen)
    need = f"about {gib(footprint.total)}: {describe_footprint(footprint)}"
    progress.note(
        f"{room}: "
        + (
            f"the settings below were chosen, so that the run will take {need}."
            if rungs
            else f"the run will take {need}."
        )
    )
    for rung in rungs:
        progress.note(f"  {rung.text()}: {rung.why}")
    if not fitting.fits(chosen):
        progress.note("  That is more than the limit, and no setting left to choose lowers it.")
    return with_fields(chosen, "training", {"memory": None})


def _resolve_encoding(config: RunConfig, fitting: MemoryFitter, progress: Progress) -> RunConfig:
    """Lower `dataset.vae_batch_size` until encoding fits, unless it was set explicitly.

    Return the settings unchanged if the run fits already, or does not fit with any number.
    """
    if "vae_batch_size" in config.dataset.model_fields_set or fitting.fits(config):
        return config
    for number in range(config.dataset.vae_batch_size - 1, 0, -1):
        changed = with_fields(config, "dataset", {"vae_batch_size": number})
        if fitting.fits(changed):
            progress.note(f"  dataset.vae_batch_size = {number}: a larger one does not fit.")
            return changed
    return config


def _open_batch_size(config: RunConfig, group: Group) -> int:
    """Return the batch size of a group; 0 if its dataset sets its own."""
    has_own = config.dataset.entries[group.dataset].batch_size is not None
    return 0 if has_own else batch_size_of(config, group)


def _most_filled(config: RunConfig, images: Sequence[PlannedImage], heaviest: Group) -> int:
    """Return how many images of the heaviest group equal the largest batch that any group can fill.

    Batches hold more of smaller images, so a group of many small images may fill a larger batch, in
    pixels, than the heaviest group, which may have a single image.
    """
    showings = showings_by_group(images)
    filled = (n * g.bucket.area for g, n in showings.items() if _open_batch_size(config, g))
    return max(1, max(filled) // heaviest.bucket.area)


def _resolve_batch(
    config: RunConfig, fitting: MemoryFitter, most: int, progress: Progress
) -> RunConfig:
    batch = fitting.batch_that_fits(config, most)
    of = f"{counted(batch, 'images')} of {fitting.group.bucket} (more of smaller images)"
    if batch < most:
        progress.note(f"Batches of {of} fit into {gib(fitting.budget)}.")
    else:
        progress.note(f"Batches of {of}: an epoch has too few images to fill larger ones.")
    area = fitting.group.bucket.area
    width, height = config.dataset.entries[fitting.group.dataset].width_height
    asked = max(1, ((batch + 1) * area - 1) // (width * height))  # the largest that gives `batch`
    return with_fields(config, "training", {"batch_size": asked, "batch_by_pixels": True})
