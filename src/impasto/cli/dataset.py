"""`impasto dataset ...`: inspect and edit images and captions before training on them.

SOURCE is a folder of images, a dataset configuration or metadata file of sd-scripts, or the
settings of a run.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from impasto.cli.dataset_cache import cache
from impasto.cli.dataset_caption import caption
from impasto.cli.dataset_captions import captions
from impasto.cli.dataset_clean import clean, tags
from impasto.cli.dataset_crop import crop
from impasto.cli.dataset_edit import edit
from impasto.cli.dataset_list import list_
from impasto.cli.dataset_mask import mask
from impasto.cli.dataset_merge import merge
from impasto.cli.dataset_options import (
    CACHE_DIR,
    DECODE,
    IMAGE_DIR,
    SOURCE,
    bucket_options,
    dataset_config,
    executor_options,
    local_dataset_config,
    print_skipped,
    scan_images,
)
from impasto.cli.dataset_prior import prior
from impasto.cli.dataset_report import report
from impasto.cli.dataset_show import show
from impasto.cli.dataset_tag import tag
from impasto.cli.dataset_try import try_models
from impasto.cli.dataset_undo import undo
from impasto.cli.groups import FullHelpGroup
from impasto.cli.numbers import Finite
from impasto.member_paths import plain
from impasto.progress import counted

if TYPE_CHECKING:
    from impasto.data.planning.plan import Plan
    from impasto.data.scanning.scan import Scan
    from impasto.models.family import SizeConditioning


@click.group(cls=FullHelpGroup)
def dataset() -> None:
    """Scan, tag, caption, edit, clean, plan and cache images, and preview their captions.

    SOURCE is a folder of images, a dataset configuration (TOML or JSON) or metadata file of
    sd-scripts, or the settings of a run.
    """


dataset.add_command(cache)
dataset.add_command(list_)
dataset.add_command(merge)
dataset.add_command(report)
dataset.add_command(tag)
dataset.add_command(caption)
dataset.add_command(captions)
dataset.add_command(try_models)
dataset.add_command(clean)
dataset.add_command(tags)
dataset.add_command(edit)
dataset.add_command(undo)
dataset.add_command(crop)
dataset.add_command(mask)
dataset.add_command(show)
dataset.add_command(prior)


@dataset.command()
@SOURCE
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@DECODE
@IMAGE_DIR
@CACHE_DIR
@executor_options
def scan(source: Path, as_json: bool, decode: bool, **options: Any) -> None:  # noqa: FBT001
    """Count the usable images and missing captions of SOURCE; list unused files with reasons."""
    from impasto.cli.console import Console
    from impasto.cli.harmless import json_text
    from impasto.progress import SilentProgress

    console = Console()
    progress = SilentProgress() if as_json else console
    result = scan_images(dataset_config(source, options), progress, decode=decode)
    if as_json:
        click.echo(json_text(_as_json(result)))
        return
    console.table(result.tally.rows())
    if result.multiline_captions:
        console.note(
            f"{counted(result.multiline_captions, 'captions have')} several lines, of which only "
            "the first is "
            f"used (enable_wildcard picks one at random)."
        )
    print_skipped(console, result, source)


def _as_json(scan: Scan) -> dict[str, Any]:
    return {
        "images": scan.tally.usable,
        "regularisation": scan.tally.regularisation,
        "with_crops": scan.tally.cut,
        "uncaptioned": list(
            dict.fromkeys(plain(r.path) for r in scan.records if not r.caption_text)
        ),
        "set_aside": [{"path": plain(a.path), "reason": a.reason} for a in scan.skipped],
        "unused": [{"path": plain(a.path), "reason": a.reason} for a in scan.unused],
    }


def _sizes_told(source: Path) -> SizeConditioning:
    """Return the size conditioning for SOURCE, adjusted to the run's settings if SOURCE is a run.

    It is that of the family in `model.family`, if given and if the family has one; otherwise that
    of the first family with one.
    """
    from impasto.config.load import load_run_of_source
    from impasto.models.families import FAMILIES

    run = load_run_of_source(source)
    asked = None if run is None else run.model.family
    sizes = {family.key: family.sizes for family in FAMILIES if family.sizes is not None}
    is_target = run is not None and run.model.size_conditioning == "target"
    return replace(sizes.get(asked or "", next(iter(sizes.values()))), as_drawn=is_target)


@dataset.command()
@SOURCE
@DECODE
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with every image.")
@click.option(
    "--simulate",
    type=click.IntRange(1, 10**10),
    metavar="N",
    help="Show instead what N images like these would need: time, disk, files, RAM.",
)
@click.option(
    "--encode-rate",
    type=Finite(min=0, min_open=True),
    metavar="N",
    help="With --simulate: the encoding speed of the VAE, in images per second.",
)
@bucket_options
@executor_options
def plan(
    source: Path,
    decode: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
    simulate: int | None,
    encode_rate: float | None,
    **options: Any,
) -> None:
    """Show the number of images of SOURCE per bucket, and how much cropping removes.

    If SOURCE is the settings of a run, only the images that are trained on are shown.
    """
    if simulate is not None:
        if as_json:
            raise click.UsageError("--json does not work with --simulate. Remove one of them.")
        from impasto.cli.console import Console
        from impasto.cli.dataset_simulate import show_simulation
        from impasto.config.load import load_run_of_source

        why = "which is not simulated: give a folder of this machine with some of the images"
        config = local_dataset_config(source, options, why)
        show_simulation(config, load_run_of_source(source), Console(), simulate, encode_rate)
        return
    if encode_rate is not None:
        raise click.UsageError("--encode-rate works only with --simulate.")
    from impasto.cli.console import Console
    from impasto.cli.dataset_plan_value import plan_value
    from impasto.cli.harmless import json_text
    from impasto.config.load import load_run_of_source
    from impasto.data.planning.regularisation import balance
    from impasto.datasets.build import balance_of, plan_dataset, split_of_source
    from impasto.progress import SilentProgress

    config = dataset_config(source, options)
    console = Console()
    progress = SilentProgress() if as_json else console
    found = scan_images(config, progress, decode=decode)
    split = split_of_source(found, load_run_of_source(source), config, progress)
    found = replace(found, records=split.training)
    result = plan_dataset(config, balance(found.records))
    if as_json:
        click.echo(json_text(plan_value(found, result, _sizes_told(source), len(split.held_out))))
        return
    balanced = balance_of(found.records, result)
    longest = max(result.bucket_counts.values())
    for size, count in result.bucket_counts.items():
        console.note(f"{size!s:>11} {count:6d}  {'█' * max(1, round(40 * count / longest))}")
    cropped = _most_cropped(result)
    console.table(
        {
            **found.tally.rows(),
            **({"Held out": len(split.held_out)} if split.held_out else {}),
            **({"Balance": balanced} if balanced else {}),
            "Cropped away": f"{100 * result.mean_cropped_fraction:.1f} % of the area on average",
            "Enlarged": f"{result.enlarged} of {counted(len(result.images), 'images')}",
            **({"Cropped most": ", ".join(cropped)} if cropped else {}),
        }
    )
    print_skipped(console, found, source)


def _most_cropped(plan: Plan) -> list[str]:
    """Return the five images that lose most to cropping, each with the percentage lost.

    Images that lose less than 0.5 % are left out.
    """
    most = (-plan.table.cropped_fractions()).argsort(kind="stable")[:5]
    return [
        f"{image.record.name} ({100 * image.cropped_fraction:.0f} %)"
        for image in (plan.images[index] for index in most.tolist())
        if image.cropped_fraction >= 0.005  # less would be shown as 0 %
    ]
