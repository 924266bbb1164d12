"""Prints the plan of a run."""

from __future__ import annotations

import json

from impasto.cli.console import Console
from impasto.cli.plan_value import DataPlan, RunPlan, ValidationPlan
from impasto.progress import counted, duration_text
from impasto.training.planning.fitter import gib


def device_name(kind: str) -> str:
    """Return the name of a device by its type in PyTorch: GPU for `cuda`."""
    return "GPU" if kind == "cuda" else kind.upper()


def show_numbers(plan: RunPlan, console: Console) -> None:
    """Print the tables of data, training and memory."""
    console.heading("Data")
    console.table(_data_rows(plan.data))
    console.heading("Training")
    console.table(_training_rows(plan))
    show_memory(plan, console)


def show_memory(plan: RunPlan, console: Console) -> None:
    """Print the peak memory on the device by use, and the RAM beside it."""
    console.heading(f"Memory, at most while {plan.memory.phase}")
    total, budget = gib(plan.memory.total), gib(plan.memory.budget)
    console.table(
        {
            **{name.capitalize(): gib(size) for name, size in plan.memory.parts.items()},
            "Total": f"about {total}; {budget} available",
            **{f"In RAM, {name}": gib(size) for name, size in plan.memory.ram.items()},
        }
    )


def show_advice(plan: RunPlan, console: Console) -> None:
    """Print warnings about unusual settings, and the settings that differ from their defaults."""
    if plan.warnings:
        console.heading("Unusual")
        for line in plan.warnings:
            console.note(f"  {line}")
    console.heading("Settings that differ from their defaults")
    for path, value in plan.changed.items():
        console.note(f"  {path} = {json.dumps(value, ensure_ascii=False)}")


def _data_rows(data: DataPlan) -> dict[str, str]:
    rows = {
        "Images": f"{data.images:,} to train on, {data.held_out:,} held out, "
        f"{len(data.skipped):,} skipped, {data.without_words:,} without captions",
        "Buckets": ", ".join(f"{size}: {n}" for size, n in data.buckets.items()),
        "Cropped away": f"{100 * data.cropped_fraction:.1f} % of the area on average",
        "Captions": f"{counted(data.too_long, 'captions have')} over {data.max_tokens} tokens; "
        "the rest is ignored",
        "Enlarged": f"{counted(data.enlarged, 'images are')} smaller than the bucket",
    }
    if data.masked:
        rows["Masks"] = f"{counted(data.masked, 'images have')} one"
    if data.regularisation:
        rows["Regularisation"] = (
            f"{data.regularisation_used:,} of {counted(data.regularisation, 'images')} used, "
            f"{counted(data.regularisation_showings, 'showings')} per epoch beside "
            f"{data.balanced_showings:,} of the images trained on"
        )
    if data.several_lines:
        text = f"{counted(data.several_lines, 'captions have')} several lines; only the first is"
        rows["Lines"] = f"{text} used (enable_wildcard picks one at random)"
    return rows


def _training_rows(plan: RunPlan) -> dict[str, str]:
    model, steps, disk = plan.model, plan.steps, plan.disk
    low, high = steps.exposure.usual_looks
    each, whole = duration_text(steps.seconds_each), duration_text(steps.seconds)
    rows = {
        "Model": f"{model.family}, predicts {model.predicts} ({model.evidence})",
        "Trains": ", ".join(f"{name} ({n / 1e6:.1f} M)" for name, n in model.parts.items()),
        "Batches": f"{steps.batches_per_epoch} per epoch of up to "
        f"{' or '.join(map(str, steps.batch_sizes))}",
        "Steps": f"{steps.total:,} in all, {steps.per_epoch} per epoch, {steps.epochs:.1f} epochs",
        "Exposure": f"each image is seen {steps.exposure.looks:.3g} times, "
        f"{steps.exposure.per_step:.3g} images a step; {low} to {high} times are usual for "
        f"{counted(steps.exposure.images, 'images')}",
        "Time": f"about {each} a step, {whole} in all, on this {device_name(steps.device)}, "
        f"without validation and previews",
        "States": f"{', '.join(disk.states)}; {disk.state_bytes / 2**30:.2f} GiB each, "
        f"the newest {disk.kept_states} kept",
        "Models": f"{', '.join(disk.models)}; {disk.model_bytes / 2**30:.2f} GiB each, "
        f"{disk.models_at_once} at once",
        "Disk": f"up to {disk.total_bytes / 2**30:.2f} GiB; {disk.free_bytes / 2**30:.1f} GiB free",
    }
    for pattern, names in model.only.items():
        more = f", ... {names[-1]}" if len(names) > 1 else ""
        shown = f": {names[0]}{more}" if names else ""
        rows[f"Only {pattern}"] = f"{counted(len(names), 'tensors')} of the U-Net{shown}"
    if disk.averages:
        rows["Averages"] = (
            f"stored {counted(disk.averages, 'times')}, {disk.averages_bytes / 2**30:.2f} GiB each "
            f"time, all kept, and {disk.start_bytes / 2**30:.2f} GiB for the initial weights"
        )
    if plan.validation is not None:
        rows["Validation"] = _validation_text(plan.validation)
    moved = steps.transfers
    if moved is not None:
        rows["Streaming"] = (
            f"{gib(moved.ram_bytes)} of weights stay in pinned RAM; a step copies "
            f"{gib(moved.to_gpu_bytes)} to the GPU and {gib(moved.from_gpu_bytes)} back: "
            f"{duration_text(moved.seconds)}"
        )
    return rows


def _validation_text(plan: ValidationPlan) -> str:
    each = duration_text(plan.seconds_each)
    sample = f" and {plan.training_images:,} trained on" if plan.training_images else ""
    kind = "copies or look the same" if plan.near else "byte copies"
    copies = (
        f"; {plan.copies:,} images are {kind}, in {counted(plan.groups, 'groups')} "
        f"(each held out as a whole or not at all)"
        if plan.copies
        else ""
    )
    return (
        f"{counted(plan.images, 'images')} held out{sample}, at {counted(plan.draws, 'draws')} of "
        f"noise and timestep each, which leave a standard error of about "
        f"{100 * plan.standard_error:.1f} % in the loss; {counted(plan.times, 'times')}, about "
        f"{each} each{copies}"
    )
