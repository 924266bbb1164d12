"""`impasto report`: the page of a run, also of one that is still going."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
def report(run: Path) -> None:
    """Write report.html, one self-contained page, for the run directory RUN."""
    from impasto.cli.console import Console
    from impasto.report.page import write_report
    from impasto.runs import RunDirectory

    path = write_report(RunDirectory.open(run))
    Console().note(f"Wrote {path}.")
