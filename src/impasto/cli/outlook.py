"""What is known of a run before it begins: found out as `train` would, with nothing trained.

`impasto train --plan` and `impasto find-lr --plan` make their plans of it, and ask it whether the
run has room.
"""

from __future__ import annotations

from dataclasses import dataclass

from impasto.config.cases import SETTINGS_ALONE, Case
from impasto.config.compatibility import require_compatible
from impasto.config.run import RunConfig
from impasto.data.loading.sampler import EpochSampler
from impasto.datasets.batching import build_epoch_sampler, count_steps, heaviest_group
from impasto.datasets.build import Survey, survey
from impasto.models.networks.hypernetwork import load_hypernetworks
from impasto.models.networks.loading import BaseModel, load_meta_model
from impasto.models.trainable import Trainable
from impasto.progress import Progress
from impasto.runs import RunDirectory
from impasto.training.assembly.session_parts import load_preview_network
from impasto.training.builders.methods import build_trainable
from impasto.training.builders.model import build_open_options
from impasto.training.builders.processes import facts_of, planned_processes
from impasto.training.compute.precision import resolve_precision
from impasto.training.devices import require_precision
from impasto.training.lifecycle.output_room import require_output_room
from impasto.training.lifecycle.preflight import require_machine, unused_gpu, why_gpu_unused
from impasto.training.optim.optimizers import require_usable_optimizer, require_weights_alone
from impasto.training.planning.disk import DiskPlan, plan_disk
from impasto.training.planning.fitter import MemoryFitter
from impasto.training.planning.memory import Footprint
from impasto.training.planning.resolve import build_memory_fitter, resolve_settings
from impasto.training.planning.workload import Workload


@dataclass(frozen=True)
class Outlook:
    """All that a plan is made of, found out without training."""

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
    """Find out what a run would do: its images, model, memory and disk use.

    Raises:
        ImpastoError: Whatever would stop the run before its first step, but for room.
    """
    card = unused_gpu()
    if card is not None:
        progress.note(f"Warning: {card} is not used: {why_gpu_unused()}")
    require_machine(asked)
    asked, processes = resolve_precision(asked, progress), planned_processes()
    require_precision(asked.training.mixed_precision)
    load_hypernetworks(asked.previews.hypernetworks)
    load_preview_network(asked, progress)
    require_compatible(asked, facts_of(asked, processes))
    found = survey(asked, progress, decode=True)
    config = resolve_settings(asked, found, progress, check=False, processes=processes)
    require_compatible(config, facts_of(config, processes))
    sampler = build_epoch_sampler(config, found.plan, processes)
    model = load_meta_model(config.model.path, build_open_options(config), progress)
    require_compatible(config, facts_of(config, processes, identity=model.identity))
    trainable = build_trainable(config, model)
    require_usable_optimizer(trainable.modules, config.optimizer)
    if not config.is_begun:
        require_weights_alone(config.optimizer, Case(config, SETTINGS_ALONE).goes_by_chunks)
    steps = count_steps(config, sampler)
    require_compatible(config, facts_of(config, processes, steps))
    group = heaviest_group(config, found.plan.images)
    workload = Workload.of(config, found)
    fitting = build_memory_fitter(asked, group, processes, workload)  # training.memory is the limit
    with progress.stage("Predicting memory", None, "settings"):
        footprint = fitting.footprint(config)
    return Outlook(
        config,
        found,
        model,
        trainable,
        sampler,
        steps,
        plan_disk(config, model, trainable, steps, sampler.steps_per_epoch),
        fitting,
        footprint,
    )


def require_output(outlook: Outlook) -> None:
    """Make sure of the room for what the run will write, as `require_output_room` says."""
    config = outlook.config
    run, per_epoch = RunDirectory(config.output_dir), outlook.sampler.steps_per_epoch
    require_output_room(run, config, outlook.disk, outlook.steps, per_epoch)


def require_fit(asked: RunConfig, outlook: Outlook) -> str | None:
    """Make sure that the run fits into memory; a sentence where that is not certain.

    Raises:
        OutOfMemoryError: It certainly does not.
    """
    if not asked.training.fit_check:
        return None
    return outlook.fitting.require_fit(outlook.config)


def seconds_per_pass(outlook: Outlook, step_s: float) -> float:
    """About how long one image takes without learning: a third of its part of a step."""
    sampler = outlook.sampler
    per_epoch = sampler.samples_before(sampler.steps_per_epoch)
    return step_s * sampler.steps_per_epoch / max(1, per_epoch) / 3
