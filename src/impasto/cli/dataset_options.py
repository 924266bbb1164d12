"""What the verbs of `impasto dataset` share: what is looked at, and how it is put into buckets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

SOURCE = click.argument("source", type=click.Path(path_type=Path))

_KEYS = {
    "resolution": "resolution",
    "min_side": "min_bucket_reso",
    "max_side": "max_bucket_reso",
    "step": "bucket_reso_steps",
    "no_upscale": "bucket_no_upscale",
    "selection": "bucket_selection",
    "table": "bucket_table",
    "flip": "flip_aug",
    "cache_dir": "cache_dir",
}


def bucket_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options for buckets; they hold where SOURCE is a folder or says nothing."""
    options = [
        click.option("--resolution", type=int, help="Side in pixels.  [default: 512]"),
        click.option("--min-side", type=int, help="Shortest bucket side.  [default: 256]"),
        click.option("--max-side", type=int, help="Longest bucket side.  [default: 1024]"),
        click.option("--step", type=int, help="Multiple of bucket sides.  [default: 64]"),
        click.option(
            "--no-upscale",
            is_flag=True,
            default=None,
            help="Never enlarge; smaller buckets instead.",
        ),
        click.option(
            "--selection",
            type=click.Choice(["native", "kohya"]),
            help="Keep the most of each picture (native), or choose as sd-scripts does.",
        ),
        click.option(
            "--table",
            type=click.Choice(["resolution", "novelai", "metadata"]),
            help="Buckets by the options above, NovelAI's 19, or as metadata says.",
        ),
        click.option("--flip", is_flag=True, default=None, help="Mirror images too."),
        CACHE_DIR,
    ]
    for option in reversed(options):
        command = option(command)
    return command


CACHE_DIR = click.option(
    "--cache-dir",
    type=click.Path(path_type=Path),
    help="Where derived data is kept.  [default: .impasto in the folder of pictures]",
)


def dataset_config(source: Path, options: dict[str, Any]) -> Any:
    """The settings of the data set that SOURCE and the options stand for.

    Raises:
        ConfigError: A file is malformed, or a value does not fit.
    """
    from impasto.config.load import load_dataset_config

    given = {key: options.get(name) for name, key in _KEYS.items()}
    return load_dataset_config(source, {k: v for k, v in given.items() if v is not None})
