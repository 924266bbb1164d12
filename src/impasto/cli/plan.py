"""`impasto train --plan`: what a run would do, worked out without training."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from impasto.cli.console import Console
from impasto.cli.outlook import (
    Outlook,
    look_ahead,
    require_fit,
    require_output,
    seconds_per_pass,
)
from impasto.cli.plan_text import show_advice, show_numbers
from impasto.cli.plan_value import (
    DataPlan,
    DiskUse,
    MemoryPlan,
    ModelPlan,
    RunPlan,
    StepPlan,
    ValidationPlan,
)
from impasto.cli.recorded import task_log
from impasto.config.differences import changed_settings
from impasto.config.run import RunConfig
from impasto.data.folders.masks import mask_file, masks_of
from impasto.data.planning.planned_table import PlannedTable
from impasto.data.planning.regularisation import Balance
from impasto.datasets.fixed_draws import planned_draws
from impasto.errors import ImpastoError
from impasto.member_paths import plain
from impasto.models.networks.tokenizers import build_tokens
from impasto.models.reading.recorded import has_random_weights
from impasto.models.trainable import Trainable, found_by
from impasto.parsing import printable
from impasto.progress import Advance, SilentProgress, counted
from impasto.runs.events import EventLog
from impasto.training.builders.text import build_layout
from impasto.training.devices import default_device
from impasto.training.planning.advice import advice_on
from impasto.training.planning.disk import DiskPlan, free_bytes
from impasto.training.planning.duration import seconds_per_step
from impasto.training.planning.exposure import exposure_of
from impasto.training.planning.transfers import Transfers, transfers_of


def show_plan(asked: RunConfig, console: Console) -> None:
    """Print the plan of a run: data, model, steps, memory, disk use and advice.

    Raises:
        ImpastoError: Any error that would stop the run before its first step.
    """
    outlook = look_ahead(asked, console)
    plan = plan_of(outlook)
    show_numbers(plan, console)
    require_output(outlook)
    show_advice(plan, console)
    doubt = require_fit(asked, outlook)
    if doubt is not None:
        console.note(f"Warning: {doubt}")


def plan_as_json(asked: RunConfig) -> tuple[dict[str, Any], ImpastoError | None]:
    """Return a run's plan as plain values, and the error that would stop the run, or None.

    Raises:
        ImpastoError: An error that already prevents planning.
    """
    notes = Notes(task_log())
    outlook = look_ahead(asked, notes)
    doubt, error = None, None
    try:
        require_output(outlook)
        doubt = require_fit(asked, outlook)
    except ImpastoError as refusal:
        error = refusal
    with notes.stage("Counting tokens, and timing this machine", None, "steps"):
        plan = asdict(plan_of(outlook))
    return {**plan, "notes": notes.lines, "doubt": doubt}, error


class Notes(SilentProgress):
    """Collects notes and prints nothing; stages go to the task's log, if this process is a task.

    Args:
        log: The event log of the task; None if this process is not a task.
    """

    def __init__(self, log: EventLog | None = None) -> None:
        self.lines: list[str] = []
        self._log = log

    @contextlib.contextmanager
    def stage(self, description: str, total: int | None, unit: str) -> Iterator[Advance]:
        """Record a stage in the task's log, if there is one."""
        if self._log is None:
            yield lambda _: None
            return
        with self._log.stage(description, total, unit) as advance:
            yield advance

    def note(self, message: str) -> None:
        """Collect a line that would be printed while the plan is made."""
        self.lines.append(message)


def plan_of(outlook: Outlook) -> RunPlan:
    """Build the plan of a run, as plain values."""
    config, identity = outlook.config, outlook.model.identity
    per_epoch, modules = outlook.sampler.steps_per_epoch, outlook.trainable.modules
    transfers = transfers_of(config, outlook.trainable, default_device())
    each = _seconds_per_step(outlook, transfers)
    exposure = exposure_of(outlook.survey.plan.table.records, outlook.sampler, outlook.steps)
    return RunPlan(
        data=_data_of(outlook),
        model=ModelPlan(
            identity.family.name,
            identity.prediction.name,
            identity.evidence,
            {module.name: module.count() for module in modules},
            _found_by_patterns(config, outlook.trainable),
        ),
        steps=StepPlan(
            total=outlook.steps,
            per_epoch=per_epoch,
            epochs=outlook.steps / per_epoch,
            batches_per_epoch=outlook.sampler.batches_per_epoch,
            batch_sizes=sorted(set(config.batch_sizes.values())),
            exposure=exposure,
            seconds_each=each,
            seconds=each * outlook.steps,
            device=default_device().type,
            transfers=transfers,
        ),
        memory=MemoryPlan(
            outlook.footprint.phase,
            {name: size for name, size in outlook.footprint.by_item().items() if size},
            outlook.footprint.total,
            outlook.fitting.budget,
            outlook.fitting.meter.ram(config),
        ),
        disk=_disk_of(config, outlook.disk),
        warnings=[
            *advice_on(
                config,
                identity,
                default_device(),
                exposure,
                sum(module.count() for module in modules),
                is_random=has_random_weights(outlook.model.contents),
            ),
            *_unused_masks(outlook),
        ],
        changed=changed_settings(config),
        validation=_validation_of(outlook, each),
    )


def _found_by_patterns(config: RunConfig, trainable: Trainable) -> dict[str, list[str]]:
    """Return pattern of `method.train_only` -> names of the trained weights that it matches."""
    patterns = config.method.train_only if config.method.kind == "full" else ()
    return {
        pattern: [n for n, p in found_by(trainable.unet, pattern).items() if p.requires_grad]
        for pattern in patterns
    }


def _data_of(outlook: Outlook) -> DataPlan:
    scan, plan, split = outlook.survey.scan, outlook.survey.plan, outlook.survey.split
    balance = outlook.survey.balance or Balance()
    tokens = build_tokens(outlook.model, build_layout(outlook.config))[0]
    return DataPlan(
        images=len(split.training) - balance.images,
        held_out=len(split.held_out),
        skipped=[
            {"path": printable(plain(item.path)), "reason": item.reason} for item in scan.skipped
        ],
        without_words=scan.uncaptioned_count,
        several_lines=scan.multiline_captions,
        buckets={str(size): number for size, number in plan.bucket_counts.items()},
        cropped_fraction=plan.mean_cropped_fraction,
        enlarged=plan.enlarged,
        too_long=tokens.too_long(PlannedTable.of(plan.images).records.fixed_captions()),
        max_tokens=outlook.config.model.max_tokens,
        regularisation=balance.images,
        regularisation_used=balance.used,
        regularisation_showings=balance.showings,
        balanced_showings=balance.trained,
        masked=len({i.record.path for i in plan.images if mask_file(i.record) is not None}),
    )


def _unused_masks(outlook: Outlook) -> list[str]:
    """Return advice if there are masks beside the images or in their folder that are not used."""
    dataset = outlook.config.dataset
    if dataset.image_dir is None or dataset.mask_dir is not None:
        return []
    records = {record.path: record for record in outlook.survey.scan.records}
    folder, number = masks_of(dataset.image_dir, records.values())
    if folder is None:
        return []
    return [
        f"{counted(number, 'images have')} a mask in {printable(str(folder))} that is not used: "
        f"dataset.mask_dir is not set"
    ]


def _validation_of(outlook: Outlook, step_s: float) -> ValidationPlan | None:
    """Build the plan of validation; None if no images are held out."""
    config, split = outlook.config, outlook.survey.split
    images = len(split.held_out)
    if not images:
        return None
    draws = planned_draws(config, images)
    sample = min(config.validation.training_images, len(outlook.survey.plan.images))
    every = config.validation.every_steps
    return ValidationPlan(
        images=images,
        copies=split.copies.images,
        groups=split.copies.groups,
        near=split.copies.near,
        draws=draws.per_image,
        standard_error=draws.standard_error(images),
        training_images=sample,
        times=1 + math.ceil(outlook.steps / every),
        seconds_each=(images + sample) * draws.per_image * seconds_per_pass(outlook, step_s),
    )


def _seconds_per_step(outlook: Outlook, transfers: Transfers | None) -> float:
    images, modules = outlook.survey.plan.images, outlook.trainable.modules
    return seconds_per_step(
        outlook.config, outlook.footprint, images, modules, default_device(), transfers
    )


def _disk_of(config: RunConfig, disk: DiskPlan) -> DiskUse:
    """Build the plan of states and models: when they are written, their sizes and the total."""
    saving = config.saving
    of_states = {
        "steps": (saving.state_every_steps, "steps"),
        "minutes": (saving.state_every_minutes, "minutes"),
    }
    states = [f"every {number:g} {unit}" for number, unit in of_states.values() if number]
    of_models = {
        "steps": (saving.model_every_steps, "steps"),
        "epochs": (saving.model_every_epochs, "epochs"),
    }
    models = [f"every {number:g} {unit}" for number, unit in of_models.values() if number]
    models += ["the best so far"] if config.keeps_best else []
    return DiskUse(
        states=[*states, "at the end"],
        state_bytes=disk.state_bytes,
        kept_states=saving.keep_states,
        models=[*models, "at the end"],
        model_bytes=disk.model_bytes,
        averages=disk.snapshots,
        averages_bytes=disk.snapshot_bytes,
        start_bytes=disk.start_bytes,
        models_at_once=disk.models,
        total_bytes=disk.run_bytes + disk.models_bytes,
        free_bytes=free_bytes(config.output_dir),
    )
