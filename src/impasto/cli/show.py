"""`impasto show`: a summary of what a run has learnt so far."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from impasto.runs import RunDirectory
    from impasto.runs.learning import Learning
    from impasto.runs.validation_groups import GroupLosses


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--images", "most", default=10, show_default=True, type=click.IntRange(0),
    help="How many of the images with the highest loss to list.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def show(run: Path, most: int, as_json: bool) -> None:  # noqa: FBT001
    """Show what the run RUN has learnt: best model, signs of over-fitting, worst images.

    Images with the highest loss, relative to others at the same noise levels, are listed if the run
    has logging.image_losses = true.
    """
    from impasto.cli.console import Console
    from impasto.cli.harmless import json_text
    from impasto.runs.remote.reading import open_run

    directory = open_run(run)
    found, groups = _found(directory, most), _groups(directory)
    found |= {
        "groups_step": None if groups is None else groups.step,
        "groups": [one.as_values() for one in groups.groups] if groups is not None else [],
    }
    if as_json:
        click.echo(json_text(found))
        return
    console = Console()
    console.table(_rows(found))
    if groups is not None:
        console.heading(f"Loss of held-out images at step {groups.step:,}, by what they share")
        console.table({one.title: one.text for one in groups.groups})
    if found["images"]:
        console.heading(f"Highest loss, of {found['images_known']:,} images")
        console.table({one["path"]: _image_text(one) for one in found["images"]})


def _found(run: RunDirectory, most: int) -> dict[str, Any]:
    from impasto.runs.image_losses import NEWEST_BYTES, read_image_losses
    from impasto.runs.learning import kept_best, read_learning, why_no_best
    from impasto.runs.mixture import mixture_of

    learning = read_learning(run)
    best = None if learning is None else kept_best(run, learning)
    is_asked = run.image_losses_file.is_file()
    mixture = mixture_of(run)
    images = read_image_losses(run.image_losses_file, NEWEST_BYTES) if is_asked else []
    return {
        "state": run.state().sentence(run.address),
        "learning": None if learning is None else learning.sentence(),
        **_claims(learning),
        "merge_ratio": None if mixture is None else mixture.ratio,
        "merged_loss": None if mixture is None else mixture.loss,
        "mixture": None if mixture is None else mixture.sentence,
        "checkpoint": None if best is None else run.address_of(best[0]),
        "checkpoint_step": None if best is None else best[1],
        "no_checkpoint": why_no_best(learning) if learning is not None and best is None else None,
        "has_image_losses": is_asked,
        "images_known": len(images),
        "images": [
            {"path": one.image, "ratio": round(one.ratio, 4), "times": one.times}
            for one in images[:most]
        ],
    }


def _groups(run: RunDirectory) -> GroupLosses | None:
    from impasto.runs.lines import read_lines
    from impasto.runs.validation_groups import last_groups

    lines = read_lines(run.metrics_file, holding=b'"validation_by"')
    return last_groups(line for _, line in lines)


def _claims(learning: Learning | None) -> dict[str, Any]:
    """Return the conclusions from the validation loss, for programs; all None without one."""
    from impasto.runs.evidence import CONFIDENCE
    from impasto.runs.learning_text import best_text, evidence_text, gap_text

    names = (
        "verdict", "is_overfitting", "best_step", "best_loss", "best_words", "as_good_as_best",
        "change", "change_se", "confidence", "gap", "evidence",
    )  # fmt: skip
    if learning is None:
        return dict.fromkeys(names)
    change = learning.compared(learning.last, learning.first)
    values = (
        learning.verdict, learning.is_overfitting, learning.best.step, learning.best.loss,
        best_text(learning), learning.as_good() if learning.is_known else None,
        None if change is None else change.mean,
        None if change is None else change.standard_error,
        CONFIDENCE if learning.is_known else None, gap_text(learning), evidence_text(learning),
    )  # fmt: skip
    return dict(zip(names, values, strict=True))


def _rows(found: dict[str, Any]) -> dict[str, str]:
    from impasto.runs.learning import NOTHING_HELD_OUT

    rows = {"State": found["state"], "Learnt": found["learning"] or NOTHING_HELD_OUT}
    told = {"Lowest": "best_words", "Gap": "gap", "Evidence": "evidence"}
    rows |= {name: found[key] for name, key in told.items() if found[key]}
    if found["mixture"]:
        rows["Mixture"] = found["mixture"]
    if found["checkpoint"]:
        rows["Best model"] = f"{found['checkpoint']}, of step {found['checkpoint_step']:,}"
    elif found["no_checkpoint"]:
        rows["Best model"] = found["no_checkpoint"]
    if not found["images_known"]:
        rows["Highest loss"] = (
            "no image losses yet"
            if found["has_image_losses"]
            else "unknown: logging.image_losses = true records the loss of each image"
        )
    return rows


def _image_text(one: dict[str, Any]) -> str:
    times = "once" if one["times"] == 1 else f"{one['times']} times"
    return f"{one['ratio']:.2f} × the usual loss, shown {times}"
