"""`impasto dataset report`: a report on the quality of a dataset, as a page and as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from impasto.cli.dataset_options import (
    SOURCE,
    bucket_options,
    dataset_config,
    executor_options,
)
from impasto.cli.local_paths import WRITTEN

if TYPE_CHECKING:
    from impasto.config.dataset import DatasetConfig


@click.command()
@SOURCE
@bucket_options
@executor_options
@click.option(
    "--out",
    type=WRITTEN,
    default=Path("dataset-report.html"),
    show_default=True,
    help="The HTML page to write; a .json file of the same name holds the same data for programs.",
)
@click.option("--overwrite", is_flag=True, help="Replace the page and JSON file if they exist.")
@click.option("--whole-paths", is_flag=True, help="Show files by their absolute paths.")
def report(
    source: Path,
    out: Path,
    overwrite: bool,  # noqa: FBT001
    whole_paths: bool,  # noqa: FBT001
    **options: Any,
) -> None:
    """Examine the images and captions of SOURCE, and write a page with the findings.

    Counts, sizes, buckets, losses to cropping; missing, long and repeated captions; tags; duplicate
    and near-duplicate images; unusable files with reasons.
    """
    from impasto.cli.console import Console
    from impasto.config.load import load_run_of_source
    from impasto.datasets.examine import examine_dataset
    from impasto.report.dataset_page import ReportFiles, write_dataset_report

    console = Console()
    target = ReportFiles(out, source)
    if not overwrite:
        target.require_free()
    run = load_run_of_source(source)
    config = dataset_config(source, options)
    if whole_paths:
        config = _with_whole_paths(config)
    health = examine_dataset(config, console, run)
    write_dataset_report(health, target, console, ("paths",) if whole_paths else ())
    console.table(
        {
            **health.tally.rows(),
            **({"Balance": health.balance} if health.balance else {}),
            "Duplicates": sum(len(group) - 1 for group in health.equal),
            "Near duplicates": sum(len(group) - 1 for group in health.near),
            "Cropped away": f"{100 * health.mean_lost:.1f} % of the area on average",
            "Page": out,
            "Data": target.data,
        }
    )


def _with_whole_paths(config: DatasetConfig) -> DatasetConfig:
    """Return the settings with all paths of images, metadata and masks made absolute."""
    from impasto.remote_paths import absolute

    def whole(named: Any) -> Any:
        names = ("image_dir", "metadata_file", "mask_dir")
        places = {name: getattr(named, name) for name in names}
        return named.model_copy(update={n: absolute(p) for n, p in places.items() if p is not None})

    datasets = tuple(
        entry.model_copy(update={"subsets": tuple(map(whole, entry.subsets))})
        for entry in config.datasets
    )
    found: DatasetConfig = whole(config).model_copy(update={"datasets": datasets})
    return found
