"""`impasto plan-worker`: a process with the libraries loaded, ready to make a plan for the studio.

Loading the libraries takes longer than the rest of a plan. The studio keeps one such process ready,
gives it one request, and starts another when it has ended; so each plan still has a separate
process, which can be ended at any time.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import click

IDLE_S = 300.0


@click.command(hidden=True)
def plan_worker() -> None:
    """Wait for one request on standard input, make the plan, and exit.

    A request is one line of JSON: "settings", a settings file; "log", the file to write the plan
    to, as printed by `impasto train --plan --json`; and "task", the folder for the events. The
    process exits after five minutes without a request, or when standard input is closed.
    """
    from impasto.parsing import parse_json

    load_libraries()
    idle = threading.Timer(IDLE_S, os._exit, (0,))
    idle.daemon = True
    idle.start()
    line = sys.stdin.readline()
    idle.cancel()
    if not line.strip():
        return
    request = parse_json(line)
    _become(Path(request["log"]), Path(request["task"]))
    from impasto.cli.train import print_plan

    print_plan(Path(request["settings"]), ())


def load_libraries() -> None:
    """Import the modules that every plan needs, without allocating GPU memory."""
    import importlib

    import impasto.cli.plan  # noqa: F401
    from impasto.models.families import FAMILIES

    for family in FAMILIES:
        for component in family.components:
            getattr(importlib.import_module(component.library), component.class_name)


def _become(log: Path, task: Path) -> None:
    """Redirect all output to the file `log` and events to the folder `task`, as for a task."""
    from impasto.cli.recorded import task_log
    from impasto.runs.tasks import TASK

    sys.stdout.flush()
    as_it_is = getattr(os, "O_BINARY", 0)  # otherwise Windows would double line ends
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | as_it_is, 0o666)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)
    os.environ[TASK] = str(task)
    task_log.cache_clear()
