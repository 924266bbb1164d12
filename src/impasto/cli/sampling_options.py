"""The options of every command that draws images: sampler, steps and guidance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from impasto.cli.numbers import Finite
from impasto.sampler_table import SAMPLERS

_CELL = 8
"""Pixels per latent, along each side, of every Stable Diffusion: no model is opened yet."""

F = TypeVar("F", bound=Callable[..., Any])


def sampling_options(command: F) -> F:
    """Add `--steps`, `--guidance`, `--guidance-rescale` and `--sampler`."""
    options = (
        click.option(
            "--steps", default=20, show_default=True, type=click.IntRange(1, 1000),
            help="Sampler steps per image.",
        ),
        click.option(
            "--guidance", default=7.0, show_default=True, type=Finite(0, 1000),
            help="Guidance scale (CFG); 1 means no guidance.",
        ),
        click.option(
            "--guidance-rescale", default=0.0, show_default=True, type=Finite(0, 1),
            help="Guidance rescale (CFG rescale): the fraction of the contrast added by guidance "
            "that is removed. 0.7 suits models trained with zero terminal SNR.",
        ),
        click.option(
            "--sampler", default="ddim", show_default=True,
            help=f"The sampler: one of {', '.join(SAMPLERS)}.",
        ),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def require_sampler_and_sides(sampler: str, width: int | None, height: int | None) -> None:
    """Check the sampler and the size of images before a model is opened.

    Raises:
        ConfigError: The sampler is unknown, or a side is not a multiple of 8.
    """
    from impasto.sampling.prompts import require_sampler, require_sides

    require_sampler(sampler)
    require_sides({"--width": width, "--height": height}, _CELL)
