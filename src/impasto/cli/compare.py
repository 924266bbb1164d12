"""`impasto compare`: several runs side by side, including unfinished and damaged ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from impasto.cli.local_paths import WRITTEN

if TYPE_CHECKING:
    from impasto.config.differences import Difference
    from impasto.report.comparison import RunFigures


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
@click.option(
    "--html", "page", metavar="FILE", type=WRITTEN,
    help="Write a self-contained HTML page: numbers, curves, and samples of the same prompt and "
    "seed side by side.",
)  # fmt: skip
def compare(runs: tuple[Path, ...], as_json: bool, page: Path | None) -> None:  # noqa: FBT001
    """Compare the run directories RUNS: settings that differ, losses, speed, memory, samples.

    Runs may be unfinished, killed or damaged: everything that can be read is shown.

    \b
    impasto compare runs/lr-1e-5 runs/lr-1e-6
    impasto compare runs/* --html compared.html
    """  # noqa: D301 - the backspace tells click to keep the lines
    from impasto.cli.console import Console
    from impasto.cli.harmless import json_text
    from impasto.config.differences import differences, read_settings
    from impasto.errors import ConfigError, RunError
    from impasto.remote_paths import is_remote
    from impasto.report.comparison import figures_of
    from impasto.runs import RunDirectory
    from impasto.runs.remote.reading import open_run

    if len(dict.fromkeys(path.resolve() for path in runs)) < max(2, len(runs)):
        raise RunError("Give at least two run directories to compare, each once.")
    if page is not None and page.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--html {page} is not an HTML file name. Give one that ends in .html.")
    console = Console()
    opened = [open_run(path) if is_remote(path) else RunDirectory(path) for path in runs]
    found = [figures_of(run) for run in opened]
    read = [read_settings(figures.config) for figures in found]
    differing = differences([settings for settings, _ in read])
    if as_json:
        rows = [
            {**figures.as_json(), "settings_fault": fault}
            for figures, (_, fault) in zip(found, read, strict=True)
        ]
        click.echo(json_text({"runs": rows, "settings": [_as_json(d) for d in differing]}))
    else:
        _print(console, found, differing)
        for path, (_, fault) in zip(runs, read, strict=True):
            if fault:
                console.note(f"{path}: {fault}")
    if page is not None:
        from impasto.report.compare_page import write_comparison

        write_comparison(page, found, [(d.path, d.about, d.values) for d in differing])
        if not as_json:
            console.note(f"\nWrote {page}.")


def _as_json(difference: Difference) -> dict[str, Any]:
    return {
        "path": difference.path,
        "about": difference.about,
        "values": list(difference.values),
    }


def _print(console: Any, runs: list[RunFigures], differing: list[Difference]) -> None:
    from impasto.report.compare_page import value_text

    for figures in runs:
        console.heading(figures.run.address)
        console.table(figures.rows())
    console.heading("Settings that differ" if differing else "No setting differs.")
    if differing:
        for difference in differing:
            values = " | ".join(map(value_text, difference.values))
            console.note(f"{difference.path} = {values}")
            if difference.about:
                console.note(f"    {difference.about}")
