"""The options of `impasto evaluate` for the measures and for drawing samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from impasto.cli.local_paths import READ
from impasto.cli.sampling_options import sampling_options

CAPTIONS = 100
"""Default number of captions to draw."""

F = TypeVar("F", bound=Callable[..., Any])


def measuring_options(command: F) -> F:
    """Add `--features`, `--tagger`, `--prompts`, `--limit`, `--count` and `--bootstrap`."""
    options = (
        click.option(
            "--features", multiple=True, default=("demo",), metavar="NAME", show_default=True,
            help="A network whose features are compared; repeatable. A folder or Hub id of a "
            "transformers model (CLIP, DINOv2, SigLIP, ViT, ...), clip, dinov2, a tagger, or demo.",
        ),
        click.option(
            "--tagger", metavar="NAME",
            help="The tagger that looks for the prompts' tags in the images, as in dataset tag; "
            "default: the first tagger among --features.",
        ),
        click.option(
            "--prompts", type=READ, metavar="FILE",
            help="A file of prompts instead of captions: .txt, .toml or .json, as for previews.",
        ),
        click.option(
            "--limit", type=click.IntRange(1),
            help=f"Use at most this many prompts, evenly spread over all; default: {CAPTIONS} "
            f"captions, or all prompts of a file.",
        ),
        click.option(
            "--count", type=click.IntRange(1), default=1, show_default=True,
            help="Number of images per prompt."
        ),
        click.option(
            "--bootstrap", type=click.IntRange(50, 10_000), default=1000, show_default=True,
            help="Number of bootstrap samples for the confidence intervals.",
        ),
    )  # fmt: skip
    return _added(command, options)


def drawing_options(command: F) -> F:
    """Add the options that, with model and prompt, determine a sample, as in `impasto sample`."""
    size = (
        "In pixels; default: that of the first run's previews for its family, else of each model."
    )
    options = (
        click.option("-n", "--negative", default="", help="Negative prompt."),
        click.option("--width", type=click.IntRange(8, 8192), help=size),
        click.option("--height", type=click.IntRange(8, 8192), help=size),
        sampling_options,
        click.option(
            "--seed", default=1, show_default=True, type=click.IntRange(0, 2**62),
            help="Seed of the first prompt; each further prompt adds 1. Seeds are the same for all "
            "models.",
        ),
        click.option(
            "--clip-skip", type=click.IntRange(1, 12),
            help="Clip skip, as in training; default: the value recorded in each model's file or "
            "run.",
        ),
        click.option(
            "--emphasis", type=click.Choice(["mean", "no_norm", "off"]),
            help="How (cat:1.2) and [dog] weight words. Default for captions: as in the training "
            "of the first run, or not at all (off); for a file of prompts: as in A1111 (mean).",
        ),
    )  # fmt: skip
    return _added(command, options)


def _added(command: F, options: tuple[Callable[[F], F], ...]) -> F:
    for option in reversed(options):
        command = option(command)
    return command
