"""The options of every verb that draws images: how many sampler steps, how strong the words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from impasto.cli.numbers import Finite
from impasto.sampler_table import SAMPLERS

_CELL = 8
"""Pixels of a side of a latent's cell in every Stable Diffusion: no model is opened yet."""

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
            help="1 means no guidance.",
        ),
        click.option(
            "--guidance-rescale", default=0.0, show_default=True, type=Finite(0, 1),
            help="How much of the contrast that guidance adds is taken back. 0.7 suits models "
            "whose noise schedule ends in noise alone.",
        ),
        click.option(
            "--sampler", default="ddim", show_default=True, help=f"One of {', '.join(SAMPLERS)}."
        ),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def require_sampler_and_sides(sampler: str, width: int | None, height: int | None) -> None:
    """Refuse what no model draws with, before one is opened.

    Raises:
        ConfigError: There is no such sampler, or a side is no multiple of 8.
    """
    from impasto.sampling.prompts import require_sampler, require_sides

    require_sampler(sampler)
    require_sides({"--width": width, "--height": height}, _CELL)
