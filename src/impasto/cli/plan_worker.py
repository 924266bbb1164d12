"""`impasto plan-worker`: has the libraries loaded when the studio asks for a plan.

Loading them takes longer than all else that a plan takes. The studio has one process that is ready
for the next plan, gives it one request, and starts another when it has ended; so each plan has a
process of its own all the same, which can be ended at any time.
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
    """Wait for a request, print the plan that it asks for, and end.

    A request is one line of JSON: "settings", a settings file; "log", the file that the plan is
    written to, as `impasto train --plan --json` prints it; and "task", the folder for the events.
    The process ends by itself after five minutes without one, or when nobody can ask any more.
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
    """Import what every plan needs, and nothing that takes memory of a GPU."""
    import importlib

    import impasto.cli.plan  # noqa: F401
    from impasto.models.families import FAMILIES

    for family in FAMILIES:
        for component in family.components:
            getattr(importlib.import_module(component.library), component.class_name)


def _become(log: Path, task: Path) -> None:
    """Write what is printed to a file from now on, and events to a folder, as a task does."""
    from impasto.cli.recorded import task_log
    from impasto.runs.tasks import TASK

    sys.stdout.flush()
    as_it_is = getattr(os, "O_BINARY", 0)  # Windows would write each line's end twice
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | as_it_is, 0o666)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)
    os.environ[TASK] = str(task)
    task_log.cache_clear()
