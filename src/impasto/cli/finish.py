"""The summary printed at the end of a run: what it has learnt, with evidence, and its files."""

from __future__ import annotations

from collections.abc import Callable

from impasto.cli.console import Console
from impasto.errors import NotSentError
from impasto.invocation import is_first_process
from impasto.report.page import write_report
from impasto.runs import RunDirectory
from impasto.runs.learning import Learning, kept_best, read_learning
from impasto.runs.learning_text import best_text, evidence_text, gap_text
from impasto.runs.mixture import mixture_of
from impasto.runs.remote.local_folders import location_of


def finish(trained: Callable[[], RunDirectory], console: Console) -> RunDirectory:
    """Train, write the report, and print the paths of model and report; only on the main process.

    Args:
        trained: Trains, and returns the run directory.
        console: Prints messages.

    Raises:
        ImpastoError: An error of the training; `NotSentError` if the run could not be sent to its
            object store, after its report was written on this machine.
    """
    unsent = None
    try:
        run = trained()
    except NotSentError as error:
        run, unsent = RunDirectory(error.folder, location=location_of(error.folder)), error
    if is_first_process():
        show_finished(run, console, sends=unsent is None)
    if unsent is not None:
        raise unsent
    return run


def show_finished(run: RunDirectory, console: Console, *, sends: bool = True) -> None:
    """Write the report of a run, and print what it has learnt and the paths of its files.

    Args:
        run: The run.
        console: Prints messages.
        sends: Whether a run in an object store is sent and its working folder removed; False if
            sending has just failed.

    Raises:
        NotSentError: The report could not be sent.
    """
    write_report(run)
    learning = read_learning(run)
    console.heading("Done")
    if learning is not None:
        console.paragraph(learning.sentence())
    console.table({**_rows(run, learning), "Report": run.address_of(run.report)})
    if run.location is not None and sends:
        from impasto.runs.remote.run_in_store import remove_working_folder, send_again

        send_again(run.location, console)
        remove_working_folder(run)


def _rows(run: RunDirectory, learning: Learning | None) -> dict[str, str]:
    rows = {} if learning is None else {"Lowest": best_text(learning), **_evidence(learning)}
    model = run.exported_model()
    mixture = mixture_of(run)
    rows["Model"] = str(run.model_address())
    if mixture is not None:
        rows["Mixture"] = mixture.sentence
    best = None if learning is None else kept_best(run, learning)
    if best is not None and best[0] != model:
        rows["Best model"] = f"{run.address_of(best[0])}, of step {best[1]:,}"
        rows["Best model"] += ", a mixture as well" if mixture_of(run, best[0]) else ""
    return rows


def _evidence(learning: Learning) -> dict[str, str]:
    told = {"Gap": gap_text(learning), "Evidence": evidence_text(learning)}
    return {name: text for name, text in told.items() if text}
