"""`impasto train` and `impasto resume`."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from impasto import presence
from impasto.cli.local_paths import READ
from impasto.cli.together import failing_together

if TYPE_CHECKING:
    from impasto.cli.console import Console
    from impasto.config.run import RunConfig
    from impasto.config.training import TrainingConfig
    from impasto.data.engines.process_group import ProcessGroup
    from impasto.runs import RunDirectory


@click.command()
@click.argument("config", type=READ)
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting; repeatable."
)
@click.option(
    "--ray-address",
    metavar="HOST:PORT",
    help="Prepare the images with this Ray cluster; auto finds the one on this machine. Short for "
    "--set dataset.executor=ray --set dataset.ray_address=HOST:PORT.",
)
@click.option("--plan", "plan_only", is_flag=True, help="Show what would happen, and exit.")
@click.option(
    "--json", "as_json", is_flag=True, help="With --plan: print one JSON object for programs."
)
def train(
    config: Path,
    overrides: tuple[str, ...],
    ray_address: str | None,
    *,
    plan_only: bool,
    as_json: bool,
) -> None:
    """Train with the settings in the TOML file CONFIG, in a new run directory.

    Example: impasto train my-style.toml --set optimizer.lr=1e-5
    """
    if ray_address is not None:
        named = f"dataset.ray_address={ray_address}"
        overrides = (*overrides, "dataset.executor=ray", named)
    if as_json:
        if not plan_only:
            raise click.UsageError("--json works only with --plan. Add --plan, or remove --json.")
        print_plan(config, overrides)
        return
    from impasto.cli.console import Console
    from impasto.cli.early import check_run

    console = Console()
    with failing_together():
        settings, notes = load_settings(config, overrides)
        for note in notes:
            console.note(note)
        check_run(settings, is_new=not plan_only)
    if plan_only:
        from impasto import files
        from impasto.cli.plan import show_plan
        from impasto.training.lifecycle.run_storage import with_local_output_dir

        with files.dry_run():
            show_plan(with_local_output_dir(settings), console)
        return
    from impasto.cli.finish import finish
    from impasto.training import trainer

    finish(lambda: trainer.train(settings, console), console)


def load_settings(file: Path, overrides: tuple[str, ...]) -> tuple[RunConfig, list[str]]:
    """Load the settings in a file, with a note for each setting that is under a former name."""
    from impasto.config.load import load_run_config
    from impasto.config.renamed import FormerNameWarning

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", FormerNameWarning)
        settings = load_run_config(file, overrides)
    return settings, [str(warning.message) for warning in said]


def print_plan(file: Path, overrides: tuple[str, ...]) -> None:
    """Print a plan as JSON; on an error, include it and exit with its code."""
    from impasto.cli.early import check_run
    from impasto.cli.harmless import json_text
    from impasto.errors import ImpastoError

    plan: dict[str, Any] = {}
    error: ImpastoError | None = None
    try:
        settings, notes = load_settings(file, overrides)
        check_run(settings, is_new=False)
        from impasto import files
        from impasto.cli.plan import plan_as_json
        from impasto.training.lifecycle.run_storage import with_local_output_dir

        with files.dry_run():
            plan, error = plan_as_json(with_local_output_dir(settings))
        plan["notes"] = [*notes, *plan["notes"]]
    except ImpastoError as refusal:
        error = refusal
    told = None
    if error is not None:
        told = {
            "kind": type(error).__name__,
            "message": str(error),
            "settings": dict(getattr(error, "faults", {})),
        }
    click.echo(json_text({"error": told, **plan}))
    if error is not None:
        sys.exit(error.exit_code)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
def resume(run: Path) -> None:
    """Continue the run in the directory RUN from its newest state, exactly.

    RUN may be the URL of a run in an object store: the files needed to resume are fetched first.

    A finished run can be extended if the learning rate does not depend on its length: raise
    training.max_steps or training.max_epochs in its config.toml first.
    """
    from impasto.cli.console import Console
    from impasto.cli.early import check_run
    from impasto.config.load import load_begun_config
    from impasto.runs.remote.reading import open_run, settings_to_go_on

    console = Console()
    with failing_together() as group:
        if group is None or group.rank == 0:  # others may not share a disk with it
            directory = open_run(run)
            state, config = directory.state(), load_begun_config(settings_to_go_on(directory))
            asked = _asked_steps(config.training, state.status)
            if state.state == "finished" and asked == state.total_steps:
                _tell_nothing_is_left(group)
                _show_finished(directory, console)
                return
            check_run(config, is_new=False)
    from impasto.cli.finish import finish
    from impasto.training import trainer

    finish(lambda: trainer.resume(run, console), console)


def _tell_nothing_is_left(group: ProcessGroup | None) -> None:
    if group is not None:
        from impasto.training.lifecycle.shared_start import tell_nothing_is_left

        tell_nothing_is_left(group)


def _show_finished(run: RunDirectory, console: Console) -> None:
    """Print the path of the model; write the report if the process ended before it could."""
    from impasto.runs.remote.local_folders import working_folder

    is_copy = run.location is not None and run.path != working_folder(run.location)
    if not presence.is_file(run.report) and not is_copy:
        from impasto.cli.finish import show_finished

        show_finished(run, console)
    console.note(f"{run.address} is finished; its model is {run.model_address()}.")


def _asked_steps(training: TrainingConfig, status: Mapping[str, Any]) -> int | None:
    """Return the length in steps that the settings request, or None if only the dataset tells.

    `status` is that of a finished run; its `steps_per_epoch` turns epochs into steps.
    """
    if training.max_steps is not None:
        return training.max_steps
    per_epoch = status.get("steps_per_epoch")
    return None if per_epoch is None else (training.max_epochs or 0) * int(per_epoch)
