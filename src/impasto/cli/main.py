"""The entry point: finds the command, runs it, and turns errors into a message and an exit code."""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Callable, Sequence

import click

from impasto import __version__
from impasto.allocation import tune_allocation
from impasto.cli.groups import FullHelpGroup
from impasto.cli.harmless import harmless
from impasto.cli.imports import leave_out_quantizers, show_slow_imports
from impasto.cli.quiet import quiet_libraries
from impasto.cli.recorded import recorded_end, task_log
from impasto.cli.refused import told
from impasto.errors import ImpastoError
from impasto.invocation import is_installed_by_start, note_extra, program
from impasto.training.signals import signal_of, sigterm_stops

VERBS = {
    "demo": "impasto.cli.demo:demo",
    "doctor": "impasto.cli.doctor:doctor",
    "new": "impasto.cli.new:new",
    "settings": "impasto.cli.settings:settings",
    "init": "impasto.cli.model:init",
    "studio": "impasto.cli.studio:studio",
    "dataset": "impasto.cli.dataset:dataset",
    "train": "impasto.cli.train:train",
    "resume": "impasto.cli.train:resume",
    "send": "impasto.cli.send:send",
    "find-lr": "impasto.cli.find_lr:find_lr",
    "runs": "impasto.cli.runs:runs",
    "show": "impasto.cli.show:show",
    "ask": "impasto.cli.runs:ask",
    "queue": "impasto.cli.queue:queue",
    "convert": "impasto.cli.convert:convert",
    "merge": "impasto.cli.merge:merge",
    "ema": "impasto.cli.ema:ema",
    "extract-lora": "impasto.cli.extract_lora:extract_lora",
    "inspect": "impasto.cli.convert:inspect",
    "models": "impasto.cli.models:models",
    "download": "impasto.cli.download:download",
    "sample": "impasto.cli.sample:sample",
    "draw-worker": "impasto.cli.draw_worker:draw_worker",
    "plan-worker": "impasto.cli.plan_worker:plan_worker",
    "report": "impasto.cli.report:report",
    "compare": "impasto.cli.compare:compare",
    "evaluate": "impasto.cli.evaluate:evaluate",
    "publish": "impasto.cli.publish:publish",
    "tasks": "impasto.cli.tasks:tasks",
    "import-command": "impasto.sdscripts.import_command:import_command",
}
UNEXPECTED_EXIT_CODE = 1

EPILOG = """\b
Exit codes: 0 done, 1 unexpected fault, 2 wrong settings or arguments,
3 dataset, 4 model, 5 run directory,
6 disk full or not writable, or an object store that cannot be used,
7 missing package or device, 8 loss became NaN, 9 out of memory,
130 or 143 stopped by Ctrl-C or SIGTERM with the state saved.
"""


class LazyGroup(FullHelpGroup):
    """A command group that imports a command only when it is looked up."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the names of all commands, in the order in which a new user needs them."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the command `cmd_name`, or None if it is unknown."""
        if cmd_name not in VERBS:
            return super().get_command(ctx, cmd_name)
        module, _, name = VERBS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; report an unhandled OSError about a file as an input error."""
        try:
            return super().invoke(ctx)
        except OSError as error:
            refusal = told(error, ctx.invoked_subcommand)
            if refusal is None:
                raise
            raise refusal from error


@click.group(cls=LazyGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="impasto")
def impasto() -> None:
    """Fine-tune Stable Diffusion on your own captioned images.

    New here? `impasto demo` does the whole job on a small embedded model and image set.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit the process with a documented code."""
    run_and_report(lambda: impasto.main(args=arguments, prog_name=program(), standalone_mode=False))


def run_and_report(command: Callable[[], object]) -> None:
    """Run `command`; on an error, print a message and exit with its documented code."""
    with recorded_end():
        _run_and_report(command)


def _run_and_report(command: Callable[[], object]) -> None:
    tune_allocation()
    quiet_libraries()
    show_slow_imports()
    leave_out_quantizers()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    try:
        with sigterm_stops():
            code = _run(command)
        if code:
            sys.exit(code)
    except click.ClickException as error:
        said = io.StringIO()
        error.show(said)
        click.echo(harmless(said.getvalue()), err=True, nl=False)
        _tell_task(error.format_message())
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt) as stop:
        click.echo("Stopped.", err=True)
        cause = stop if isinstance(stop, KeyboardInterrupt) else KeyboardInterrupt()
        sys.exit(128 + signal_of(cause))


def _run(command: Callable[[], object]) -> int:
    """Run `command`, and return 0 or the exit code of the error that was reported."""
    try:
        command()
    except ImpastoError as error:
        return _report(error)
    except OSError as error:
        refusal = told(error)
        if refusal is None:  # not about a file
            raise
        return _report(refusal)
    return 0


def _report(error: ImpastoError) -> int:
    from impasto.cli.console import show_error

    extra = getattr(error, "extra", None)
    if extra and is_installed_by_start(extra):
        note_extra(extra)  # start.py installs it and runs the same command again
    else:
        show_error(error)
        _tell_task(str(error))
    return error.exit_code


def _tell_task(message: str) -> None:
    log = task_log()
    if log is not None:
        log.add("error", text=message)


if __name__ == "__main__":
    main()
