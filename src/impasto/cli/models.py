"""`impasto models ...`: list models in folders and runs; delete, restore and purge them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from impasto.cli.groups import FullHelpGroup
from impasto.cli.listing import existing_folders, folder_names, print_list
from impasto.cli.local_paths import KEPT, LISTED_RUNS, MANAGED
from impasto.invocation import command

if TYPE_CHECKING:
    from impasto.cli.console import Console
    from impasto.runs import RunDirectory
    from impasto.runs.queue_jobs import Job
    from impasto.studio.folders import Folders
    from impasto.studio.models import FoundModel
    from impasto.studio.trash import DeletedModel

FOLDERS = click.argument("folders", nargs=-1, type=MANAGED)
MODEL = click.argument("model", type=MANAGED)
RUNS = click.option(
    "--runs", "run_folders", multiple=True, metavar="DIR", type=LISTED_RUNS,
    help="A folder with runs that may need the model, searched up to three levels deep; "
    "repeatable. Default: the current folder.",
)  # fmt: skip
QUEUE = click.option(
    "--queue", "queue_folder", default=Path("queue"), show_default=True, metavar="DIR",
    type=KEPT, help="The folder of a queue whose jobs may need the model.",
)  # fmt: skip


@click.group(cls=FullHelpGroup)
def models() -> None:
    """List and delete models; deleted models go to a trash folder and can be restored.

    `impasto inspect` describes a model, `impasto convert` writes it in another format.
    """


@models.command("list")
@FOLDERS
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object per model for programs."
)
@click.option("--deleted", is_flag=True, help="List deleted models in the trash folders instead.")
def list_models(folders: tuple[Path, ...], *, as_json: bool, deleted: bool) -> None:
    """List the models in FOLDERS, up to three levels deep, newest first.

    Without FOLDERS, the current folder is searched. Models exported by runs are listed too. With
    --deleted, the models in the folders named .trash are listed.
    """
    from impasto.studio.models import MOST_SCANNED, all_models
    from impasto.studio.trash import all_deleted

    if deleted:
        print_list(
            all_deleted(_existing(folders)),
            lambda model: (str(model.path), _deleted_line(model)),
            _deleted_as_json if as_json else None,
            f"There are no deleted models in the trash of {folder_names(folders)}.",
        )
        return
    cut: list[Path] = []
    print_list(
        all_models(_existing(folders), cut),
        lambda model: (str(model.path), _line(model)),
        _as_json if as_json else None,
        f"No models in {folder_names(folders)}.",
    )
    for folder in cut:
        click.echo(
            f"Models may be missing: {folder} has over {MOST_SCANNED:,} folders and models, and "
            f"the rest is not searched. Give subfolders instead.",
            err=True,
        )


@models.command()
@MODEL
@RUNS
@QUEUE
@click.option("--yes", is_flag=True, help="Delete the model; without this nothing is changed.")
def delete(model: Path, run_folders: tuple[Path, ...], queue_folder: Path, *, yes: bool) -> None:
    """Move MODEL, a file or Diffusers folder, into the folder .trash beside it.

    Without --yes, this lists the runs and jobs that need the model, and deletes nothing. A model in
    use by a run is not deleted. `impasto models restore` restores it; `impasto models purge` and
    `impasto models empty-trash` free the disk space.
    """
    from impasto.cli.console import Console
    from impasto.errors import RunError
    from impasto.studio.model_users import working_with
    from impasto.studio.models import model_at
    from impasto.studio.trash import delete as move_to_trash

    console = Console()
    found = model_at(model)
    console.table({"Model": found.path, "What": _line(found)})
    runs, jobs = _who_may_need(run_folders, queue_folder)
    _say_who_needs(console, found, runs, jobs, _nobody_in(run_folders, queue_folder))
    alive = working_with(found, _existing(run_folders).runs, runs, jobs)
    if alive:
        raise RunError(f"Nothing was deleted: {', '.join(alive)} works with it now.")
    if not yes:
        console.note("Nothing was deleted. Add --yes to move it to the trash.")
        return
    moved = move_to_trash(found)
    console.note(f"Moved to {moved}. To restore it: {command('models', 'restore', moved)}")


@models.command()
@MODEL
def restore(model: Path) -> None:
    """Move MODEL, a path in a .trash folder, back to its original place.

    `impasto models list --deleted` shows the models that can be restored. Nothing is replaced: if
    another file now has the original name, nothing is changed.
    """
    from impasto.cli.console import Console
    from impasto.studio.trash import deleted_at
    from impasto.studio.trash import restore as move_back

    Console().note(f"Restored to {move_back(deleted_at(model))}.")


@models.command()
@MODEL
@RUNS
@QUEUE
@click.option("--yes", is_flag=True, help="Remove permanently; without this nothing is changed.")
def purge(model: Path, run_folders: tuple[Path, ...], queue_folder: Path, *, yes: bool) -> None:
    """Permanently remove MODEL, a path in a .trash folder.

    Without --yes, this lists the runs and jobs that need the model, and removes nothing.
    """
    from impasto.cli.console import Console
    from impasto.progress import size_text
    from impasto.studio.trash import deleted_at
    from impasto.studio.trash import purge as remove

    console, found = Console(), deleted_at(model)
    console.table({"Model": found.path, "Was": found.origin, "What": _deleted_line(found)})
    runs, jobs = _who_may_need(run_folders, queue_folder)
    _say_who_needs(console, found.as_it_was, runs, jobs, _nobody_in(run_folders, queue_folder))
    if not yes:
        console.note("Nothing was removed. Add --yes to remove it permanently.")
        return
    remove(found)
    console.note(f"Removed permanently. That freed {size_text(found.size)}.")


@models.command("empty-trash")
@FOLDERS
@click.option("--yes", is_flag=True, help="Remove permanently; without this nothing is changed.")
def empty(folders: tuple[Path, ...], *, yes: bool) -> None:
    """Permanently remove the deleted models of FOLDERS, up to three levels deep.

    Without FOLDERS, the current folder is used. Models that are deleted while this runs stay in the
    trash.
    """
    from impasto.cli.console import Console
    from impasto.progress import counted, size_text
    from impasto.studio.trash import all_deleted, empty_trash

    console, there = Console(), _existing(folders)
    deleted = all_deleted(there)
    size = size_text(sum(one.size for one in deleted))
    if not yes:
        console.note(f"The trash holds {size}. Nothing was removed. Add --yes to empty it.")
        return
    gone = empty_trash(there, {one.name for one in deleted})
    freed = size_text(sum(one.size for one in gone))
    console.note(f"Removed {counted(len(gone), 'models')} permanently. That freed {freed}.")


def _who_may_need(
    run_folders: tuple[Path, ...], queue_folder: Path
) -> tuple[list[RunDirectory], list[Job]]:
    """Return the runs in some folders and the jobs of a queue, which may need a model."""
    from impasto.runs.queue import Queue

    runs = [summary.run for summary in _existing(run_folders).all_runs()]
    return runs, Queue(queue_folder).jobs() if queue_folder.is_dir() else []


def _nobody_in(run_folders: tuple[Path, ...], queue_folder: Path) -> str:
    where = " or ".join(map(str, run_folders)) or "the current folder"
    return f"No run in {where} and no job of {queue_folder}"


def _say_who_needs(
    console: Console, found: FoundModel, runs: list[RunDirectory], jobs: list[Job], none: str
) -> None:
    """Print the runs and jobs that need a model; if there are none, a line starting with `none`."""
    from impasto.studio.model_users import jobs_with, users_of

    users, waiting = users_of(found, runs), jobs_with(found, jobs)
    for run, key in users:
        console.note(f"Needed by the run {run.path} ({key}): it could not be resumed.")
    for job, key in waiting:
        console.note(f"Needed by job {job.number} of the queue, {job.name} ({key}).")
    if not users and not waiting:
        console.note(f"{none} needs it.")
    if found.run is not None:
        console.note(f"The run {found.run.path} has exported it.")


def _existing(folders: tuple[Path, ...]) -> Folders:
    """Return the given folders, or the current one, as folders of both models and runs.

    Raises:
        RunError: A folder does not exist.
    """
    from impasto.studio.folders import Folders

    given = existing_folders(folders)
    return Folders(runs=given, models=given)


def _as_json(model: FoundModel) -> dict[str, Any]:
    return {
        "path": str(model.path),
        "bytes": model.size,
        "changed_at": model.changed_at,
        "run": None if model.run is None else str(model.run.path),
    }


def _line(model: FoundModel) -> str:
    view = model.view()
    texts = [view["kind"], view["size"], view["when"]]
    return " · ".join([*texts, f"of the run {view['run']}"] if view["run"] else texts)


def _deleted_as_json(model: DeletedModel) -> dict[str, Any]:
    return {"path": str(model.path), "bytes": model.size, "from": str(model.origin)}


def _deleted_line(model: DeletedModel) -> str:
    view = model.view()
    return " · ".join([view["kind"], view["size"], f"deleted {view['when']}", str(model.origin)])
