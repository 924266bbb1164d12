"""How a run ends on the screen: what it has learnt, with evidence, and what was made of it."""

from __future__ import annotations

from impasto.cli.console import Console
from impasto.invocation import is_first_process
from impasto.report.page import write_report
from impasto.runs import RunDirectory
from impasto.runs.learning import Learning, kept_best, read_learning
from impasto.runs.learning_words import best_words, evidence_words, gap_words


def finish(run: RunDirectory, console: Console) -> None:
    """Write the report and name model and report; only the first process speaks."""
    if not is_first_process():
        return
    write_report(run)
    learning = read_learning(run)
    console.heading("Done")
    if learning is not None:
        console.paragraph(learning.sentence())
    console.table({**_rows(run, learning), "Report": str(run.report)})


def _rows(run: RunDirectory, learning: Learning | None) -> dict[str, str]:
    rows = {} if learning is None else {"Lowest": best_words(learning), **_evidence(learning)}
    rows["Model"] = str(run.exported_model())
    best = None if learning is None else kept_best(run, learning)
    if best is not None and best[0] != run.exported_model():
        rows["Best model"] = f"{best[0]}, of step {best[1]:,}"
    return rows


def _evidence(learning: Learning) -> dict[str, str]:
    told = {"Gap": gap_words(learning), "Evidence": evidence_words(learning)}
    return {name: words for name, words in told.items() if words}
