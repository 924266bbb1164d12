"""Runs as plain values for templates, without HTML, read from run directories."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from impasto.errors import RunError
from impasto.parsing import parse_toml, read_text
from impasto.report.previews import newest_previews, parameters_of, preview_names
from impasto.runs import RunDirectory, RunState, step_name
from impasto.runs.commands import CommandName
from impasto.runs.events import read_events
from impasto.runs.lines import size_of
from impasto.runs.listing import RunSummary
from impasto.runs.mixture import mixture_of
from impasto.studio.run_processes import RunProcesses
from impasto.studio.watching import RunWatch, line_of

ASKS: dict[CommandName, str] = {
    "preview": "Preview now",
    "validate": "Validate now",
    "save": "Save a state now",
    "stop": "Stop after this step",
    "stop-now": "Stop now",
}
"""Labels of the buttons that send requests to a run."""

_LOG_LINES = 300
_LOG_BYTES = 256 << 10


def run_rows(
    summaries: Iterable[RunSummary], name_of: Callable[[RunDirectory], str]
) -> list[dict[str, Any]]:
    """Return the list of runs, one row per run."""
    return [
        {
            "name": name_of(summary.run),
            "title": summary.run.path.name or str(summary.run.path),
            "place": str(summary.run.path.parent),
            "state": summary.state.state,
            "progress": _progress(summary.state),
            "details": summary.state.details(),
            "when": summary.when,
            "sample": _newest_sample(summary.run),
        }
        for summary in summaries
    ]


def run_page(run: RunDirectory, processes: RunProcesses) -> dict[str, Any]:
    """Return the content of a run's page, except the curves, which the page requests separately."""
    position = RunWatch(run).position  # first, so that changes during the reading are sent again
    return {
        "title": run.path.name or str(run.path),
        "place": str(run.path.resolve()),
        "config": _settings(run),
        "lines": _log(run),
        **samples_view(run),
        "facts": _facts(run),
        "position": position,
        **state_view(run, run.state(), processes),
    }


def samples_view(run: RunDirectory) -> dict[str, Any]:
    """Return the steps that have previews, and the previews of the newest step.

    For the steps in between, only the folders are listed, not their files: a run may have thousands
    of steps, of which the page shows one at a time.
    """
    steps = run.sampled_steps()
    newest = newest_previews(run, steps)
    if newest is None:
        return {"steps": [], "samples": [], "no_samples": _why_none(run)}
    step, files = newest
    steps = steps[: steps.index(step) + 1]
    drawn = ((n, set(preview_names(run, step))) for n, step in enumerate(steps))
    first, in_first = next((found for found in drawn if found[1]), (len(steps) - 1, set(files)))
    return {
        "steps": steps[first:],
        "samples": [
            {"file": name, "prompt": _prompt(run, step, name), "in_first": name in in_first}
            for name in files
        ],
    }


def _why_none(run: RunDirectory) -> str:
    """Return a sentence on why a run has no previews, or when it will draw the first."""
    try:
        asked = parse_toml(read_text(run.config_file)).get("previews", {})
        prompts = asked.get("prompts") or asked.get("prompt_file")
        every, epochs = asked.get("every_steps"), asked.get("every_epochs")
    except (OSError, ValueError, AttributeError):
        return "No previews yet."
    if not prompts:
        return "This run draws no previews, since its settings have no prompts."
    if every == 0 and not epochs:
        return "No previews yet. The run draws them at its end, or on “Preview now”."
    often = f" every {every} steps" if every and not epochs else " during training"
    return f"No previews yet. The run draws them{often}, or on “Preview now”."


def _prompt(run: RunDirectory, step: int, name: str) -> str:
    """Return the prompt stored in a preview, or the name of its file if there is none."""
    return parameters_of(run.samples / step_name(step) / name).partition("\n")[0] or name


def state_view(run: RunDirectory, state: RunState, processes: RunProcesses) -> dict[str, Any]:
    """Return the state of a run, and the requests and actions that are possible in it."""
    model, mixture = run.exported_model(), mixture_of(run)
    waits = not state.is_alive and processes.is_starting(run.path)
    ending = waits and state.status.get("pid") == processes.pid_of(run.path)
    saved = run.saved_steps()
    return {
        "state": state.state,
        "sentence": state.sentence(run.path),
        "progress": _progress(state),
        "details": state.details(),
        "stage": _stage(state) if state.is_alive else None,
        "is_alive": state.is_alive,
        "asks": ASKS,
        "starting": waits and not ending,
        "ending": ending,
        "can_resume": state.can_go_on and not waits,
        "newest_state": saved[-1] if saved else None,
        "at_stop": f"All training after step {saved[-1]:,} will be lost."
        if saved
        else "No state is saved yet: all steps will be lost.",
        "failure": "" if state.is_alive else processes.failure_of(run.path),
        "model": None if model is None else str(model),
        "mixture": mixture.sentence if model is not None and mixture is not None else "",
    }


def _progress(state: RunState) -> dict[str, int] | None:
    if not state.total_steps:
        return None
    return {"step": state.step, "total": state.total_steps}


def _stage(state: RunState) -> dict[str, Any] | None:
    status = state.status
    if "stage" not in status:
        return None
    return {
        "text": status["stage"],
        "done": status.get("stage_done", 0),
        "total": status.get("stage_total"),
        "unit": status.get("stage_unit", ""),
    }


def _newest_sample(run: RunDirectory) -> tuple[int, str] | None:
    newest = newest_previews(run)
    return None if newest is None else (newest[0], newest[1][0])


def _log(run: RunDirectory) -> list[dict[str, str]]:
    begin = max(
        0, size_of(run.events_file) - _LOG_BYTES
    )  # may start within a line, which is skipped
    lines = (line_of(event) for _, event in read_events(run.events_file, begin))
    return [line for line in lines if line is not None][-_LOG_LINES:]


def _settings(run: RunDirectory) -> str:
    try:
        return read_text(run.config_file, "replace")
    except OSError as error:
        return f"config.toml cannot be read: {error}"


def _facts(run: RunDirectory) -> list[tuple[str, str]]:
    """Return facts about the dataset and the machine, as far as the run has recorded them."""
    dataset, environment = _json(run, "dataset.json"), _json(run, "environment.json")
    found = []
    if "images" in dataset:
        found.append(("Images", f"{dataset['images']:,}"))
    if dataset.get("regularisation"):
        found.append(("Regularisation images", f"{dataset['regularisation']:,}"))
    if "held_out" in dataset:
        found.append(("Held out", f"{dataset['held_out']:,}"))
    if dataset.get("set_aside"):
        found.append(("Skipped", f"{len(dataset['set_aside']):,}"))
    if environment.get("gpus"):
        found.append(("GPU", ", ".join(str(gpu.get("name")) for gpu in environment["gpus"])))
    elif environment:
        found.append(("Device", "CPU"))
    return found


def _json(run: RunDirectory, name: str) -> Mapping[str, Any]:
    try:
        return run.read_json(name)
    except RunError:
        return {}
