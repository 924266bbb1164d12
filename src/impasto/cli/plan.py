"""`impasto train --plan`: what a run would do, without doing it."""

from __future__ import annotations

from impasto.cli.console import Console
from impasto.config.load import build_run_config, dump_toml
from impasto.config.run import RunConfig
from impasto.data.plan import Plan
from impasto.data.scan import Scan
from impasto.models.trainable import Trainable
from impasto.training.advice import advice_on
from impasto.training.batches import build_epoch_sampler, count_steps, heaviest_group
from impasto.training.devices import default_device
from impasto.training.disk import DiskPlan, free_bytes, plan_disk, require_room
from impasto.training.duration import in_words, seconds_per_update
from impasto.training.fitting import gib
from impasto.training.footprint import Footprint
from impasto.training.methods import build_trainable
from impasto.training.pictures import survey
from impasto.training.session import build_open_options
from impasto.training.settling import build_fitting, settle


def show_plan(asked: RunConfig, console: Console) -> None:
    """Print data, updates, parts and disk use of a run.

    Raises:
        ImpastoError: Whatever would stop the run before its first step.
    """
    from impasto.models.loading import build_tokens, outline_base_model
    from impasto.training.text import build_layout

    found = survey(asked, console)
    config = settle(asked, found, console, check=False)
    scan, plan, training = found.scan, found.plan, found.split.training
    sampler = build_epoch_sampler(config, plan, num_processes=1)
    model = outline_base_model(config.model.path, build_open_options(config), console)
    trainable = build_trainable(config, model)
    too_long = build_tokens(model, build_layout(config)).too_long(
        [record.steady_caption for record in training]
    )
    steps = count_steps(config, sampler)
    disk = plan_disk(config, model, trainable, steps, sampler.updates_per_epoch)
    group, _ = heaviest_group(config, plan.images)
    fitting = build_fitting(asked, group)  # whose training.memory is the limit
    footprint = fitting.footprint(config)
    console.heading("Data")
    console.table(
        {
            "Pictures": f"{len(training)} to train on, {len(found.split.held_out)} held out, "
            f"{len(scan.set_aside)} set aside, {scan.uncaptioned} without words",
            "Buckets": ", ".join(f"{size}: {n}" for size, n in plan.bucket_counts.items()),
            "Cropped away": f"{100 * plan.mean_lost_area:.1f} % of the area on average",
            "Captions": f"{too_long} have over {config.model.max_tokens} tokens, whose ends are "
            f"not seen",
            "Enlarged": f"{plan.enlarged} pictures are smaller than their bucket",
            **more_lines_row(scan),
        }
    )
    console.heading("Training")
    console.table(
        {
            "Model": f"{model.identity.family.name}, predicts {model.identity.prediction.name} "
            f"({model.identity.evidence})",
            "Trains": ", ".join(f"{p.name} ({p.count() / 1e6:.1f} M)" for p in trainable.parts),
            "Batches": f"{sampler.batches_per_epoch} per epoch of up to "
            f"{' or '.join(map(str, sorted(set(config.batch_sizes.values()))))}",
            "Updates": f"{steps} in all, {sampler.updates_per_epoch} per epoch, "
            f"{steps / sampler.updates_per_epoch:.1f} epochs",
            "Time": duration_row(config, footprint, plan, steps, trainable),
            **disk_rows(config, disk),
        }
    )
    console.heading(f"Memory, at most while {footprint.moment}")
    console.table(
        {
            **{name.capitalize(): gib(size) for name, size in footprint.by_part().items() if size},
            "In all": f"about {gib(footprint.total)}; {gib(fitting.budget)} are there",
        }
    )
    require_room(disk, config)
    warnings = advice_on(config, model.identity)
    if warnings:
        console.heading("Unusual")
        for line in warnings:
            console.note(f"  {line}")
    console.heading("Settings that differ from their defaults")
    for line in _changed_settings(config):
        console.note(f"  {line}")
    if asked.training.fit_check:
        doubt = fitting.require_fit(config)
        if doubt is not None:
            console.note(f"Warning: {doubt}")


def duration_row(
    config: RunConfig, footprint: Footprint, plan: Plan, steps: int, trainable: Trainable
) -> str:
    """About how long an update and the run will take."""
    device = default_device()
    each = seconds_per_update(config, footprint, plan.images, trainable.parts, device)
    return (
        f"about {in_words(each)} an update, {in_words(each * steps)} in all, on this {device.type}"
    )


def more_lines_row(scan: Scan) -> dict[str, str]:
    """What to say of captions with lines that are never shown; nothing if there are none."""
    if not scan.with_more_lines:
        return {}
    text = f"{scan.with_more_lines} captions have several lines; only the first is used"
    return {"Lines": f"{text} (enable_wildcard takes one at random)"}


def disk_rows(config: RunConfig, disk: DiskPlan) -> dict[str, str]:
    """States and models: when they are written, how large they are, and what they take in all."""
    saving = config.saving
    rhythms = {
        "steps": (saving.state_every_steps, "updates"),
        "minutes": (saving.state_every_minutes, "minutes"),
    }
    states = [f"every {number:g} {unit}" for number, unit in rhythms.values() if number]
    rhythms = {
        "steps": (saving.model_every_steps, "updates"),
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
    required = {
        "output_dir": str(config.output_dir),
        "model": {"path": str(config.model.path)},
        "dataset": {"image_dir": "."},
        "training": {"max_steps": 1},
    }
    defaults = set(_flat(dump_toml(build_run_config(required, source="defaults"))))
    return [line for line in _flat(dump_toml(config)) if line not in defaults]


def _flat(toml: str) -> list[str]:
    """`section.key = value` lines of a TOML text."""
    section, lines = "", []
    for line in toml.splitlines():
        if line.startswith("["):
            section = line.strip("[]") + "."
        elif line.strip():
            lines.append(section + line if "=" in line else line)
    return lines
