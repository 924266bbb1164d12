"""Prepares a run as `train` would, without training, to plan it and to check its memory and disk.

Used by `impasto train --plan` and `impasto find-lr --plan`.
"""

from __future__ import annotations

from dataclasses import dataclass

from impasto.config.run import RunConfig
from impasto.data.loading.sampler import EpochSampler
from impasto.datasets.batching import heaviest_group
from impasto.datasets.build import Survey
from impasto.models.networks.loading import BaseModel
from impasto.models.trainable import Trainable
from impasto.progress import Progress
from impasto.runs import RunDirectory
from impasto.runs.remote.local_folders import is_working_folder
from impasto.training.assembly.session_parts import load_preview_network
from impasto.training.builders.processes import planned_processes, require_strategy
from impasto.training.lifecycle.output_room import require_output_room
from impasto.training.lifecycle.preflight import require_machine, unused_gpu, why_gpu_unused
from impasto.training.planning.disk import DiskPlan, plan_disk
from impasto.training.planning.fitter import MemoryFitter
from impasto.training.planning.given_texts import require_given_texts
from impasto.training.planning.memory import Footprint
from impasto.training.planning.resolve import build_memory_fitter
from impasto.training.planning.resolved_run import resolve_run
from impasto.training.planning.workload import Workload


@dataclass(frozen=True)
class Outlook:
    """A run prepared for planning: settings, images, model, steps, disk and memory use."""

    config: RunConfig
    survey: Survey
    model: BaseModel
    trainable: Trainable
    sampler: EpochSampler
    steps: int
    disk: DiskPlan
    fitting: MemoryFitter
    footprint: Footprint


def look_ahead(asked: RunConfig, progress: Progress) -> Outlook:
    """Prepare a run without training it: its images, model, memory and disk use.

    Raises:
        ImpastoError: Any error that would stop the run before its first step, except a lack of
            memory or disk space.
    """
    card = unused_gpu()
    if card is not None:
        progress.note(f"Warning: {card} is not used: {why_gpu_unused()}")
    require_machine(asked)
    processes = planned_processes()
    require_strategy(asked, processes)
    run = resolve_run(asked, progress, processes, is_plan=True)
    config = run.config
    load_preview_network(config, progress)
    require_given_texts(config, run.survey, progress)
    model, trainable = run.models.shown(config)
    group = heaviest_group(config, run.survey.plan.images)
    workload = Workload.of(config, run.survey)
    # the limit is training.memory as requested
    fitting = build_memory_fitter(asked, group, processes, workload, run.models)
    with progress.stage("Predicting memory", None, "settings"):
        footprint = fitting.footprint(config)
    return Outlook(
        config,
        run.survey,
        model,
        trainable,
        run.sampler,
        run.steps,
        plan_disk(config, model, trainable, run.steps, run.sampler.steps_per_epoch),
        fitting,
        footprint,
    )


def require_output(outlook: Outlook) -> None:
    """Make sure that the run directory can be used and the disk has room for the run's files.

    A directory that holds a run already is planned as a continuation of that run.

    Raises:
        RunError: The directory holds other files, or models of other runs would be replaced.
        StorageError: The disk has too little free space.
    """
    config = outlook.config
    run, per_epoch = RunDirectory(config.output_dir), outlook.sampler.steps_per_epoch
    if not is_working_folder(run.path) and not run.config_file.is_file():
        RunDirectory.require_free(config.output_dir)
    require_output_room(run, config, outlook.disk, outlook.steps, per_epoch)


def require_fit(asked: RunConfig, outlook: Outlook) -> str | None:
    """Make sure that the run fits into memory; return a warning if that is uncertain, else None.

    Raises:
        OutOfMemoryError: The run certainly does not fit.
    """
    if not asked.training.fit_check:
        return None
    return outlook.fitting.require_fit(outlook.config)


def seconds_per_pass(outlook: Outlook, step_s: float) -> float:
    """Estimate the seconds of a forward pass for one image: a third of its part of a step."""
    sampler = outlook.sampler
    per_epoch = sampler.samples_before(sampler.steps_per_epoch)
    return step_s * sampler.steps_per_epoch / max(1, per_epoch) / 3
