"""`impasto runs` and `impasto ask`: list runs, and send commands to a run while it trains."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

import click

from impasto.cli.listing import existing_folders, folder_names, print_list
from impasto.cli.local_paths import LISTED_RUNS
from impasto.runs.commands import COMMANDS, CommandName

if TYPE_CHECKING:
    from impasto.runs import RunDirectory
    from impasto.runs.listing import RunSummary

_ASK_AGAIN_S = 0.2


@click.command()
@click.argument("folders", nargs=-1, type=LISTED_RUNS)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per run for programs.")
def runs(folders: tuple[Path, ...], as_json: bool) -> None:  # noqa: FBT001
    """List the runs in FOLDERS, up to three levels deep, with the current state of each.

    Without FOLDERS, the current folder is searched. A run whose process ended without recording the
    reason is listed as killed.
    """
    from impasto.runs.listing import find_runs, newest_first

    where = existing_folders(folders, " Give folders with runs in them.")
    print_list(
        newest_first(find_runs(where)),
        lambda summary: (str(summary.run.path), _line(summary)),
        (lambda summary: summary.as_json()) if as_json else None,
        f"No runs in {folder_names(folders)}. A run is a folder written by training (output_dir).",
    )


def _line(summary: RunSummary) -> str:
    state = summary.state
    texts: list[str] = [state.state]
    if state.total_steps is not None:
        texts.append(f"{state.step:,} of {state.total_steps:,} steps")
    elif state.step:
        texts.append(f"{state.step:,} steps")
    if state.is_alive and "stage" in state.status:
        texts.append(str(state.status["stage"]))
    texts += state.details()
    if state.resumption is not None:
        texts.append(f"resumed later and {state.resumption} before a step")
    elif state.finished_step is not None:
        texts.append(f"had finished at step {state.finished_step:,}")
    if state.state == "killed":
        texts.append(f"state of step {state.saved_step} kept" if state.saved_step else "no state")
    if summary.when and not state.is_alive:
        texts.append(summary.when)
    return " · ".join(texts)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("command", type=click.Choice(get_args(CommandName)))
@click.option(
    "--wait", default=600.0, show_default=True, metavar="SECONDS",
    help="How long to wait for the run's answer; 0 does not wait.",
)  # fmt: skip
def ask(run: Path, command: str, wait: float) -> None:
    """Send a command to the run in the directory RUN, which executes it between two steps.

    \b
    preview   draw previews now
    validate  measure the validation loss now
    save      save a training state now
    stop      save a training state after this step, and stop
    stop-now  stop without saving
    """  # noqa: D301 - the backspace tells click to keep the lines
    from impasto.cli.console import Console
    from impasto.errors import RunError
    from impasto.runs.commands import send_command
    from impasto.runs.lines import size_of
    from impasto.runs.remote.reading import open_run, require_here

    directory = open_run(run)
    require_here(directory)
    address = directory.address
    state = directory.state()
    if not state.is_alive:
        raise RunError(f"{directory.address} is not being trained. {state.sentence(address)}")
    console, name = Console(), cast("CommandName", command)
    events_before = size_of(directory.events_file)
    sent = send_command(directory.commands, name)
    console.note(f"Asked to {COMMANDS[name]}.")
    if wait <= 0:
        return
    answer = _answer(directory, sent.id, events_before, wait)
    if answer is not None:
        console.note(f"Answer: {answer}.")
        return
    state = directory.state()
    if not state.is_alive:
        raise RunError(f"The run ended before it answered. {state.sentence(address)}")
    taken = not sent.file.exists()
    why = "The run has read it but not finished it" if taken else "The run has not read it yet"
    raise RunError(f"No answer within {wait:g} s. {why}.")


def _answer(run: RunDirectory, identity: str, offset: int, wait_s: float) -> str | None:
    """Wait for the run's answer to a command; None if there is none in time or the run ends."""
    from impasto.runs.events import read_events

    until = time.monotonic() + wait_s
    while True:
        is_alive = run.state().is_alive
        for end, event in read_events(run.events_file, offset):
            offset = end
            if event["kind"] == "command" and event.get("id") == identity:
                return str(event.get("text", ""))
        if not is_alive or time.monotonic() >= until:
            return None
        time.sleep(_ASK_AGAIN_S)
