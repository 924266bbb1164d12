"""`impasto train --plan`: what a run would do, without doing it."""

from __future__ import annotations

from impasto.cli.console import Console
from impasto.config.load import build_run_config, dump_toml
from impasto.config.run import RunConfig
from impasto.data.scan import Scan
from impasto.training.advice import advice_on
from impasto.training.disk import DiskPlan, free_bytes, plan_disk, require_room
from impasto.training.methods import build_trainable
from impasto.training.pictures import plan_dataset, scan_dataset, split_records
from impasto.training.session import (
    build_epoch_sampler,
    build_open_options,
    count_steps,
)


def show_plan(config: RunConfig, console: Console) -> None:
    """Print data, updates, parts and disk use of a run.

    Raises:
        ImpastoError: Whatever would stop the run before its first step.
    """
    from impasto.models.loading import build_tokens, load_base_model
    from impasto.training.text import build_layout

    scan = scan_dataset(config.dataset, console)
    split = split_records(scan, config.dataset, config.validation, config.seed)
    training, held_out = split.training, split.held_out
    plan = plan_dataset(config.dataset, training)
    sampler = build_epoch_sampler(config, plan, num_processes=1)
    model = load_base_model(config.model.path, build_open_options(config), console)
    trainable = build_trainable(config, model)
    too_long = build_tokens(model, build_layout(config)).too_long(
        [record.steady_caption for record in training]
    )
    steps = count_steps(config, sampler)
    disk = plan_disk(config, model, trainable, steps, sampler.updates_per_epoch)
    console.heading("Data")
    console.table(
        {
            "Pictures": f"{len(training)} to train on, {len(held_out)} held out, "
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
            **disk_rows(config, disk),
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
