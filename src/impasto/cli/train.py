"""`impasto train` and `impasto resume`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting; repeatable."
)
@click.option("--plan", "plan_only", is_flag=True, help="Say what would happen, and stop.")
def train(config: Path, overrides: tuple[str, ...], plan_only: bool) -> None:  # noqa: FBT001
    """Train as the TOML file CONFIG says, in a new run directory.

    Example: impasto train my-style.toml --set optimizer.lr=1e-5
    """
    from impasto.cli.console import Console
    from impasto.cli.early import require_run
    from impasto.config.load import load_run_config

    settings = load_run_config(config, overrides)
    console = Console()
    require_run(settings, is_new=not plan_only)
    if plan_only:
        from impasto.cli.plan import show_plan

        show_plan(settings, console)
        return
    from impasto.cli.finish import finish
    from impasto.training import trainer

    finish(trainer.train(settings, console), console)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
def resume(run: Path) -> None:
    """Continue the run in the directory RUN from its newest state, exactly.

    A finished run with a constant learning rate can be made longer: raise training.max_steps in its
    config.toml first.
    """
    from impasto.cli.console import Console
    from impasto.cli.early import require_run
    from impasto.config.load import load_run_config
    from impasto.runs import RunDirectory

    console = Console()
    directory = RunDirectory.open(run)
    status = directory.read_json("status.json")
    config = load_run_config(directory.config_file)
    wanted = config.training.max_steps
    if status.get("phase") == "finished" and wanted in (None, status["total_steps"]):
        console.note(f"{run} is finished; its model is {directory.exported_model()}.")
        return
    require_run(config, is_new=False)
    from impasto.cli.finish import finish
    from impasto.training import trainer

    finish(trainer.resume(run, console), console)
