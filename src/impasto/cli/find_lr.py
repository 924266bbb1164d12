"""`impasto find-lr`: a learning-rate range test."""

from __future__ import annotations

from pathlib import Path

import click

from impasto.cli.local_paths import READ, WRITTEN
from impasto.cli.numbers import Finite
from impasto.errors import ConfigError

ENDING = ".html"


@click.command("find-lr")
@click.argument("config", type=READ)
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting; repeatable."
)
@click.option(
    "--from", "low", type=Finite(0, min_open=True), default=1e-8, show_default=True,
    help="The first learning rate to try.",
)  # fmt: skip
@click.option(
    "--to", "high", type=Finite(0, 10, min_open=True), default=1e-2, show_default=True,
    help="The last learning rate to try, unless the loss diverges before.",
)  # fmt: skip
@click.option(
    "--steps", type=click.IntRange(10, 10_000), default=100, show_default=True,
    help="Number of optimizer steps; the rate rises by the same factor each step.",
)  # fmt: skip
@click.option(
    "--images", type=click.IntRange(1, 1000), default=8, show_default=True,
    help="Number of training images on which the loss is measured after each step.",
)  # fmt: skip
@click.option(
    "--timesteps", type=click.IntRange(1, 100), default=4, show_default=True,
    help="Number of noise levels (timesteps) per image.",
)  # fmt: skip
@click.option(
    "--out", "page", metavar="PAGE", type=WRITTEN,
    help="Write the curve as an HTML page, to a new file that ends in .html.",
)  # fmt: skip
@click.option(
    "--plan", "plan_only", is_flag=True,
    help="Show what the test would do, its time and memory, and exit.",
)  # fmt: skip
def find_lr(
    config: Path,
    overrides: tuple[str, ...],
    *,
    low: float,
    high: float,
    steps: int,
    images: int,
    timesteps: int,
    page: Path | None,
    plan_only: bool,
) -> None:
    """Suggest a learning rate for the run that the TOML file CONFIG describes.

    Trains for a number of steps while the rate rises, and after each step measures the loss on the
    same images with the same noise. The run directory is not touched, and the trained weights are
    discarded.

    \b
    impasto find-lr my-style.toml --out rates.html
    impasto find-lr my-style.toml --to 1e-3 --steps 200
    impasto find-lr my-style.toml --plan
    """  # noqa: D301 - the backspace tells click to keep the lines
    from impasto import files
    from impasto.cli.console import Console
    from impasto.cli.early import check_run
    from impasto.cli.train import load_settings
    from impasto.training.analysis.lr_range import LrRange, suggest

    tried = LrRange(low, high, steps)
    if page is not None:
        _require_page(page)
        files.require_absent(page)
        files.require_writable(page.absolute().parent)
    console = Console()
    settings, notes = load_settings(config, overrides)
    for note in notes:
        console.note(note)
    check_run(settings, is_new=False)
    from impasto.training.analysis.lr_finding import Probe, find_lr

    if plan_only:
        from impasto.cli.find_lr_plan import show_lr_plan

        with files.dry_run():
            show_lr_plan(settings, tried, Probe(images, timesteps), page, console)
        return
    curve = find_lr(settings, tried, Probe(images, timesteps), console)
    suggestion = suggest(curve)
    console.heading("No suggestion" if suggestion.lr is None else f"lr = {suggestion.lr:.2g}")
    console.paragraph(suggestion.reason)
    if page is not None:
        from impasto.report.lr_page import write_lr_page

        write_lr_page(page, f"Learning rates for {config.stem}", curve, suggestion)
        console.note(f"Wrote {page}.")


def _require_page(page: Path) -> None:
    if page.suffix.lower() != ENDING:
        raise ConfigError(
            f"{page} has the extension {page.suffix or '(none)'}; the page is written as {ENDING}. "
            f"Give a name that ends in {ENDING}."
        )
