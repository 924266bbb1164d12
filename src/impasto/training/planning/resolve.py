"""Resolves settings before a run begins: those that fit its memory, its batch size, if it fits."""

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
    """The settings as the run will have them: what `auto` means.

    Args:
        config: The settings, with what the model records.
        survey: What is known of the images.
        progress: Receives notes of what was chosen.
        check: Whether it is to run now: then what is free is the limit, whatever `training.memory`
            allows, and it is made sure that it fits, if the settings do not say otherwise.
        processes: How many processes share the run.
        models: The base model without values; None makes it.

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
        progress.note(f"On this machine {gib(free)} are free: a run here chooses for those.")
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
        group = heaviest_group(config, images)  # that of a dataset with a batch size of its own?
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
    """What finds out whether a run fits, on the device that it will have.

    Args:
        config: The settings.
        group: The images whose batches have most pixels.
        processes: How many processes share the run.
        workload: What is done beside training; None counts training alone.
        models: The base model without values; None makes it.
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
    """What a run takes with its largest batch, on the device that it will have.

    Raises:
        ImpastoError: The model cannot be read, or the settings do not fit it.
    """
    group = heaviest_group(config, survey.plan.images)
    fitting = build_memory_fitter(config, group, workload=Workload.of(config, survey))
    return fitting.footprint(config)


def free_memory(device: torch.device) -> int:
    """Bytes that this process may have in all: what is free, and what it has."""
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
    progress.note(f"{room}: " + (f"chosen, to take {need}." if rungs else f"the run takes {need}."))
    for rung in rungs:
        progress.note(f"  {rung.text()}: {rung.why}")
    if not fitting.fits(chosen):
        progress.note("  That is more. No other setting that was left open would lower it.")
    return with_fields(chosen, "training", {"memory": None})


def _resolve_encoding(config: RunConfig, fitting: MemoryFitter, progress: Progress) -> RunConfig:
    """Have the VAE encode fewer images at once where its usual number does not fit."""
    if "vae_batch_size" in config.dataset.model_fields_set or fitting.fits(config):
        return config
    for number in range(config.dataset.vae_batch_size - 1, 0, -1):
        changed = with_fields(config, "dataset", {"vae_batch_size": number})
        if fitting.fits(changed):
            progress.note(f"  dataset.vae_batch_size = {number}: more at once do not fit.")
            return changed
    return config


def _open_batch_size(config: RunConfig, group: Group) -> int:
    """Images of a batch of a group; 0 where its dataset has a batch size of its own."""
    has_own = config.dataset.entries[group.dataset].batch_size is not None
    return 0 if has_own else batch_size_of(config, group)


def _most_filled(config: RunConfig, images: Sequence[PlannedImage], heaviest: Group) -> int:
    """Images of the heaviest group with the pixels of the largest batch that any group can fill.

    Of smaller images more go into a batch, so a group of many of them may fill a larger one than
    the heaviest group, which may have a single image.
    """
    showings = showings_by_group(images)
    filled = (n * g.bucket.area for g, n in showings.items() if _open_batch_size(config, g))
    return max(1, max(filled) // heaviest.bucket.area)


def _resolve_batch(
    config: RunConfig, fitting: MemoryFitter, most: int, progress: Progress
) -> RunConfig:
    batch = fitting.batch_that_fits(config, most)
    of = f"{counted(batch, 'images')} of {fitting.group.bucket}, of smaller ones more"
    if batch < most:
        progress.note(f"Batches of {of}, fit into {gib(fitting.budget)}.")
    else:
        progress.note(f"Batches of {of}: an epoch has not enough images to fill larger ones.")
    area = fitting.group.bucket.area
    width, height = config.dataset.entries[fitting.group.dataset].width_height
    asked = max(1, ((batch + 1) * area - 1) // (width * height))  # the most that gives `batch`
    return with_fields(config, "training", {"batch_size": asked, "batch_by_pixels": True})
