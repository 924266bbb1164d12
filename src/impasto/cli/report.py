"""`impasto report`: write the report page of a run, which may still be training."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
def report(run: Path) -> None:
    """Write report.html, one self-contained page, for RUN: a run directory, or its URL."""
    from impasto.cli.console import Console
    from impasto.report.page import write_report
    from impasto.runs.remote.reading import open_run, put_report

    console = Console()
    opened = open_run(run, console)
    write_report(opened)
    put_report(opened)
    console.note(f"Wrote {opened.address_of(opened.report)}.")
