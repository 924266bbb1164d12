"""How a run ends on the screen: the report is written, and what was made is named."""

from __future__ import annotations

from impasto.cli.console import Console
from impasto.invocation import is_first_process
from impasto.report.page import write_report
from impasto.runs import RunDirectory


def finish(run: RunDirectory, console: Console) -> None:
    """Write the report and name model and report; only the first process speaks."""
    if not is_first_process():
        return
    write_report(run)
    losses = [r["validation_loss"] for r in run.read_metrics() if "validation_loss" in r]
    rows = {"Model": str(run.exported_model()), "Report": str(run.report)}
    if losses and losses[0]:
        change = 100 * (losses[-1] / losses[0] - 1)
        before_after = f"{losses[0]:.4f} before, {losses[-1]:.4f} after ({change:+.0f} %)"
        rows = {"Validation loss": before_after, **rows}
    console.heading("Done")
    console.table(rows)
