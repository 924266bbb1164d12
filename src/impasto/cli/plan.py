"""`impasto train --plan`: what a run would do, without doing it."""

from __future__ import annotations

import json
from dataclasses import dataclass

from impasto.cli.console import Console
from impasto.config.compatibility import require_compatible
from impasto.config.load import build_run_config, settings_by_path
from impasto.config.run import RunConfig
from impasto.data.plan import Plan
from impasto.data.sampler import EpochSampler
from impasto.data.scan import Scan
from impasto.datasets.batching import build_epoch_sampler, count_steps, heaviest_group
from impasto.datasets.build import Survey, survey
from impasto.models.hypernetwork import load_hypernetworks
from impasto.models.loading import BaseModel, build_tokens, load_meta_model
from impasto.models.trainable import Trainable
from impasto.progress import counted, duration_words
from impasto.runs import RunDirectory
from impasto.training.devices import default_device, require_precision
from impasto.training.methods import build_trainable
from impasto.training.model import build_open_options
from impasto.training.model_files import planned_models
from impasto.training.optim.optimizers import require_usable_optimizer
from impasto.training.planning.advice import advice_on
from impasto.training.planning.disk import DiskPlan, free_bytes, plan_disk, require_room
from impasto.training.planning.duration import seconds_per_step
from impasto.training.planning.levers import MemoryFitter, gib
from impasto.training.planning.memory import Footprint
from impasto.training.planning.resolve import build_memory_fitter, resolve_settings
from impasto.training.planning.workload import Workload
from impasto.training.precision import resolve_precision
from impasto.training.preflight import require_machine, unused_gpu, why_gpu_unused
from impasto.training.processes import facts_of, planned_processes
from impasto.training.saving.own_models import OwnModels
from impasto.training.text import build_layout
from impasto.training.triggers import Triggers


@dataclass(frozen=True)
class _Outlook:
    """All that a plan shows, found out without training."""

    config: RunConfig
    survey: Survey
    model: BaseModel
    trainable: Trainable
    sampler: EpochSampler
    steps: int
    disk: DiskPlan
    fitting: MemoryFitter
    footprint: Footprint


def show_plan(asked: RunConfig, console: Console) -> None:
    """Print data, steps, parts and disk use of a run.

    Raises:
        ImpastoError: Whatever would stop the run before its first step.
    """
    outlook = _look_ahead(asked, console)
    config, footprint, budget = outlook.config, outlook.footprint, outlook.fitting.budget
    console.heading("Data")
    console.table(_data_rows(outlook))
    console.heading("Training")
    console.table(_training_rows(outlook))
    console.heading(f"Memory, at most while {footprint.moment}")
    console.table(
        {
            **{name.capitalize(): gib(size) for name, size in footprint.by_part().items() if size},
            "In all": f"about {gib(footprint.total)}; {gib(budget)} are there",
        }
    )
    require_room(outlook.disk, config)
    endings = Triggers(config, outlook.sampler.steps_per_epoch).planned_endings(outlook.steps)
    own = OwnModels(RunDirectory(config.output_dir), overwrite=config.saving.overwrite)
    own.require_free(planned_models(config, endings))
    warnings = advice_on(config, outlook.model.identity, default_device())
    if warnings:
        console.heading("Unusual")
        for line in warnings:
            console.note(f"  {line}")
    console.heading("Settings that differ from their defaults")
    for line in _changed_settings(config):
        console.note(f"  {line}")
    if asked.training.fit_check:
        doubt = outlook.fitting.require_fit(config)
        if doubt is not None:
            console.note(f"Warning: {doubt}")


def _look_ahead(asked: RunConfig, console: Console) -> _Outlook:
    card = unused_gpu()
    if card is not None:
        console.note(f"Warning: {card} is not used: {why_gpu_unused()}")
    require_machine(asked)
    asked, processes = resolve_precision(asked, console), planned_processes()
    require_precision(asked.training.mixed_precision)
    load_hypernetworks(asked.previews.hypernetworks)
    require_compatible(asked, facts_of(asked, processes))
    found = survey(asked, console, decode=True)
    config = resolve_settings(asked, found, console, check=False, processes=processes)
    require_compatible(config, facts_of(config, processes))
    sampler = build_epoch_sampler(config, found.plan, processes)
    model = load_meta_model(config.model.path, build_open_options(config), console)
    prediction = model.identity.prediction
    require_compatible(config, facts_of(config, processes, prediction=prediction))
    trainable = build_trainable(config, model)
    require_usable_optimizer(trainable.parts, config.optimizer)
    steps = count_steps(config, sampler)
    require_compatible(config, facts_of(config, processes, steps))
    group, _ = heaviest_group(config, found.plan.images)
    workload = Workload.of(config, found)
    fitting = build_memory_fitter(asked, group, processes, workload)  # training.memory is the limit
    with console.stage("Predicting memory", None, "settings"):
        footprint = fitting.footprint(config)
    return _Outlook(
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


def _data_rows(outlook: _Outlook) -> dict[str, str]:
    config, found = outlook.config, outlook.survey
    scan, plan, split = found.scan, found.plan, found.split
    too_long = build_tokens(outlook.model, build_layout(config))[0].too_long(
        [record.fixed_caption for record in split.training]
    )
    return {
        "Images": f"{len(split.training):,} to train on, {len(split.held_out):,} held out, "
        f"{len(scan.set_aside):,} skipped, {scan.uncaptioned_count:,} without words",
        "Buckets": ", ".join(f"{size}: {n}" for size, n in plan.bucket_counts.items()),
        "Cropped away": f"{100 * plan.mean_cropped_fraction:.1f} % of the area on average",
        "Captions": f"{counted(too_long, 'captions have')} over {config.model.max_tokens} tokens; "
        f"what is beyond is not seen",
        "Enlarged": f"{counted(plan.enlarged, 'images are')} smaller than the bucket",
        **more_lines_row(scan),
    }


def _training_rows(outlook: _Outlook) -> dict[str, str]:
    config, steps, per_epoch = outlook.config, outlook.steps, outlook.sampler.steps_per_epoch
    identity, parts = outlook.model.identity, outlook.trainable.parts
    return {
        "Model": f"{identity.family.name}, predicts {identity.prediction.name} "
        f"({identity.evidence})",
        "Trains": ", ".join(f"{p.name} ({p.count() / 1e6:.1f} M)" for p in parts),
        "Batches": f"{outlook.sampler.batches_per_epoch} per epoch of up to "
        f"{' or '.join(map(str, sorted(set(config.batch_sizes.values()))))}",
        "Steps": f"{steps:,} in all, {per_epoch} per epoch, {steps / per_epoch:.1f} epochs",
        "Time": duration_row(
            config, outlook.footprint, outlook.survey.plan, steps, outlook.trainable
        ),
        **disk_rows(config, outlook.disk),
    }


def duration_row(
    config: RunConfig, footprint: Footprint, plan: Plan, steps: int, trainable: Trainable
) -> str:
    """About how long a step and the run will take."""
    device = default_device()
    each = seconds_per_step(config, footprint, plan.images, trainable.parts, device)
    whole = duration_words(each * steps)
    return f"about {duration_words(each)} a step, {whole} in all, on this {device.type}"


def more_lines_row(scan: Scan) -> dict[str, str]:
    """What to say of captions with lines that are never shown; nothing if there are none."""
    if not scan.multiline_captions:
        return {}
    text = (
        f"{counted(scan.multiline_captions, 'captions have')} several lines; only the first is used"
    )
    return {"Lines": f"{text} (enable_wildcard takes one at random)"}


def disk_rows(config: RunConfig, disk: DiskPlan) -> dict[str, str]:
    """States and models: when they are written, how large they are, and what they take in all."""
    saving = config.saving
    rhythms = {
        "steps": (saving.state_every_steps, "steps"),
        "minutes": (saving.state_every_minutes, "minutes"),
    }
    states = [f"every {number:g} {unit}" for number, unit in rhythms.values() if number]
    rhythms = {
        "steps": (saving.model_every_steps, "steps"),
        "epochs": (saving.model_every_epochs, "epochs"),
    }
    models = [f"every {number:g} {unit}" for number, unit in rhythms.values() if number]
    models += ["the best so far"] if saving.best_model else []
    total, free = disk.run_bytes + disk.models_bytes, free_bytes(config.output_dir)
    return {
        "States": f"{', '.join([*states, 'at the end'])}; {disk.state_bytes / 2**30:.2f} GiB each, "
        f"the newest {saving.keep_states} kept",
        "Models": f"{', '.join([*models, 'at the end'])}; {disk.model_bytes / 2**30:.2f} GiB each, "
        f"{disk.models} at once",
        "Disk": f"up to {total / 2**30:.2f} GiB; {free / 2**30:.1f} GiB free",
    }


def _changed_settings(config: RunConfig) -> list[str]:
    """`section.key = value` for each setting that is not as usual, with its whole value."""
    required = {
        "output_dir": str(config.output_dir),
        "model": {"path": str(config.model.path)},
        "dataset": {"image_dir": "."},
        "training": {"max_steps": 1},
    }
    usual = settings_by_path(build_run_config(required, source="defaults"))
    return [
        f"{path} = {json.dumps(value, ensure_ascii=False)}"
        for path, value in settings_by_path(config).items()
        if value is not None and (path not in usual or usual[path] != value)
    ]
