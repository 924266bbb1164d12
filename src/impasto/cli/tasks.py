"""`impasto tasks ...`: list and stop tasks that the studio has started."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from impasto.cli.groups import FullHelpGroup
from impasto.cli.listing import existing_folders, print_list
from impasto.cli.local_paths import KEPT

if TYPE_CHECKING:
    from impasto.runs.tasks import TaskDirectory
    from impasto.studio.tasks import Tasks

RUNS = click.option(
    "--runs", "folder", default=Path(), metavar="DIR", type=KEPT,
    help="The first --runs folder of the studio that started the tasks. Default: the current "
    "folder.",
)  # fmt: skip


@click.group(cls=FullHelpGroup)
def tasks() -> None:
    """List and stop tasks of the studio: tagging, conversions, downloads, drawing.

    Runs are listed by `impasto runs`, and stopped by `impasto ask`.
    """


@tasks.command("list")
@RUNS
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object per task for programs."
)
def list_tasks(folder: Path, as_json: bool) -> None:  # noqa: FBT001
    """List the tasks, newest first, with the current state of each."""
    known = _tasks_of(folder)
    print_list(
        [_as_json(known, task) for task in known.all()],
        lambda task: (task["name"], _line(task)),
        dict if as_json else None,
        f"The studio has started no tasks for the runs in {_folder_name(folder)}.",
    )


@tasks.command()
@click.argument("name")
@RUNS
def stop(name: str, folder: Path) -> None:
    """Ask the task NAME to stop; `impasto tasks list` shows the names."""
    from impasto.cli.console import Console
    from impasto.errors import RunError
    from impasto.invocation import command

    known = _tasks_of(folder)
    task = known.find(name)
    if task is None:
        shown = () if folder == Path() else ("--runs", folder)
        raise RunError(
            f"There is no task {name} of the runs in {_folder_name(folder)}. "
            f"List the tasks with: {command('tasks', 'list', *shown)}"
        )
    state = known.state_of(task)
    if not state.is_alive:
        raise RunError(f"Task {name} is not running: it is {state.state}.")
    known.stop(task)
    Console().note(f"Asked to stop: {task.description().get('title', name)}.")


def _folder_name(folder: Path) -> str:
    return "the current folder" if folder == Path() else str(folder)


def _tasks_of(folder: Path) -> Tasks:
    """Return the tasks of the studio of a folder of runs.

    Raises:
        RunError: The folder does not exist, or links lead out of it.
    """
    from impasto.studio.folders import HOME, require_own
    from impasto.studio.tasks import TASKS, Tasks

    existing_folders([folder], " Give the folder of runs of the studio: --runs.")
    require_own(folder / HOME, folder)
    return Tasks(folder / HOME / TASKS)


def _as_json(known: Tasks, task: TaskDirectory) -> dict[str, Any]:
    state, about = known.state_of(task), task.description()
    return {
        "name": task.path.name,
        "title": str(about.get("title", "")),
        "words": [str(argument) for argument in about.get("words", ())],
        "started_at": about.get("started_at"),
        "state": state.state,
        "stage": None if state.stage is None else dict(state.stage),
        "error": state.error,
    }


def _line(one: dict[str, Any]) -> str:
    from impasto.runs.events import stage_text

    texts = [one["state"], one["title"]]
    stage = one["stage"]
    if stage is not None and one["state"] in ("starting", "working"):
        texts.append(stage_text(stage))
    if one["error"]:
        texts.append(one["error"].partition("\n")[0])
    return " · ".join(texts)
