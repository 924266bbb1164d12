"""The options of `impasto evaluate` that say what is measured, and how samples are drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from impasto.cli.local_paths import READ
from impasto.cli.sampling_options import sampling_options

CAPTIONS = 100
"""Captions that are drawn if nothing else is asked for."""

F = TypeVar("F", bound=Callable[..., Any])


def measuring_options(command: F) -> F:
    """Add `--features`, `--tagger`, `--prompts`, `--limit`, `--count` and `--bootstrap`."""
    options = (
        click.option(
            "--features", multiple=True, default=("demo",), metavar="NAME", show_default=True,
            help="A network whose features are compared; repeatable. A folder or Hub id of "
            "transformers (CLIP, DINOv2, SigLIP, ViT, ...), clip, dinov2, a tagger, or demo.",
        ),
        click.option(
            "--tagger", metavar="NAME",
            help="What finds the prompts' tags in the images, as in dataset tag; default: the "
            "first tagger among --features.",
        ),
        click.option(
            "--prompts", type=READ, metavar="FILE",
            help="A file of prompts instead of captions: .txt, .toml or .json, as for previews.",
        ),
        click.option(
            "--limit", type=click.IntRange(1),
            help=f"At most this many prompts, evenly spread over all; default: {CAPTIONS} of "
            f"captions, all of a file.",
        ),
        click.option(
            "--count", type=click.IntRange(1), default=1, show_default=True,
            help="Images per prompt."
        ),
        click.option(
            "--bootstrap", type=click.IntRange(50, 10_000), default=1000, show_default=True,
            help="Bootstrap samples for the confidence intervals.",
        ),
    )  # fmt: skip
    return _added(command, options)


def drawing_options(command: F) -> F:
    """Add what decides a sample besides model and prompt, as `impasto sample` has it."""
    size = "Default: the size of the first run's previews for its family, else each model's own."
    options = (
        click.option("-n", "--negative", default="", help="What the images should not show."),
        click.option("--width", type=click.IntRange(8, 8192), help=size),
        click.option("--height", type=click.IntRange(8, 8192), help=size),
        sampling_options,
        click.option(
            "--seed", default=1, show_default=True, type=click.IntRange(0, 2**62),
            help="Seed of the first prompt; each further one adds 1. It is the same for all "
            "models.",
        ),
        click.option(
            "--clip-skip", type=click.IntRange(1, 12),
            help="As in training; default: what each model's file or run says.",
        ),
        click.option(
            "--emphasis", type=click.Choice(["mean", "no_norm", "off"]),
            help="What (cat:1.2) and [dog] do. Default: in captions as in the training of the "
            "first run, or nothing (off); in a file of prompts as in A1111 (mean).",
        ),
    )  # fmt: skip
    return _added(command, options)


def _added(command: F, options: tuple[Callable[[F], F], ...]) -> F:
    for option in reversed(options):
        command = option(command)
    return command
