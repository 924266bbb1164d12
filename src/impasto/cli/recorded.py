"""What a command tells a person, told to whoever started it as a task too (`runs/tasks.py`)."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

from impasto.runs.events import EventLog
from impasto.runs.tasks import current_task

_PROGRESS_EVERY_S = 0.5


@functools.cache
def task_log() -> EventLog | None:
    """The events of the task that this process is; None if it is none."""
    task = current_task()
    if task is None:
        return None
    log = EventLog(_PROGRESS_EVERY_S)
    log.open(task.events_file)
    return log


@contextlib.contextmanager
def recorded_end() -> Iterator[None]:
    """Note the exit code with which the process ends; for a process that is no task, nothing."""
    log = task_log()
    if log is None:
        yield
        return
    code = 1
    try:
        yield
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    except Exception as error:
        log.add("error", text=f"{type(error).__name__}: {error}")
        raise
    finally:
        log.add("ended", code=code)
