"""`impasto dataset list`: list the images of a dataset with their properties, for programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from impasto.cli.dataset_options import (
    SOURCE,
    bucket_options,
    dataset_config,
    executor_options,
)
from impasto.cli.local_paths import WRITTEN


@click.command("list")
@SOURCE
@bucket_options
@executor_options
@click.option(
    "--copies",
    is_flag=True,
    help="Find duplicates and near duplicates among all images; new ones are read and decoded. "
    "Without this option, only images that were compared before are considered.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the list as lines of JSON.")
@click.option(
    "--out",
    type=WRITTEN,
    help="Write the list as lines of JSON to this file, replacing it.",
)
def list_(
    source: Path,
    copies: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
    out: Path | None,
    **options: Any,
) -> None:
    """List every image file of SOURCE, used or skipped, with its properties.

    Size, bucket, fraction lost to cropping, caption, reason for skipping, duplicates and near
    duplicates: as JSON, one line per image after a line about the list. Headers are read once, so
    listing a folder again opens only files that have changed. Without --json or --out, only a
    summary is printed.
    """
    from impasto.cli.console import Console
    from impasto.data.inspecting.image_list import lines_of, write_image_list
    from impasto.datasets.list_images import list_images
    from impasto.progress import SilentProgress

    if as_json and out is not None:
        raise click.UsageError("--json prints the list and --out writes it: give one of them.")
    console = Console()
    given = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in options.items()
        if value is not None and name not in ("executor", "ray_address")
    }
    found = list_images(
        dataset_config(source, options),
        source,
        SilentProgress() if as_json else console,
        options=given,
        copies=copies,
    )
    if as_json:
        for line in lines_of(found):
            click.echo(printable_line(line))
        return
    if out is not None:
        write_image_list(out, found)
    skipped = sum(bool(image.skipped) for image in found.images)
    console.table(
        {
            "Images": len(found.images),
            "Skipped": skipped,
            "Without captions": sum(not (i.captioned or i.skipped) for i in found.images),
            "Enlarged": sum(image.enlarged > 0 for image in found.images),
            "Duplicates": sum(image.copies > 0 for image in found.images),
            "Near duplicates": sum(image.near > 0 for image in found.images),
            "Compared": f"{found.compared} of {len(found.images) - skipped}",
            **({} if out is None else {"List": out}),
        }
    )


def printable_line(line: str) -> str:
    """Return a line of JSON in ASCII, free of terminal control sequences."""
    import json

    from impasto.parsing import parse_json

    return json.dumps(parse_json(line, halves=True))
