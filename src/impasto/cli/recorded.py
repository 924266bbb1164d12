"""Records a command's progress and messages for the studio, which ran it as a task.

See `runs/tasks.py`.
"""

from __future__ import annotations

import _thread
import contextlib
import functools
import sys
import threading
import time
from collections.abc import Iterator

from impasto.runs.events import EventLog
from impasto.runs.tasks import TaskDirectory, current_task

_PROGRESS_EVERY_S = 0.5
_LOOK_EVERY_S = 0.5


@functools.cache
def task_log() -> EventLog | None:
    """Return the event log of the task that this process runs; None if it is not a task."""
    task = current_task()
    if task is None:
        return None
    log = EventLog(_PROGRESS_EVERY_S)
    log.open(task.events_file)
    if sys.platform == "win32":  # elsewhere a signal does it
        watch = threading.Thread(target=stop_when_asked, args=(task,), daemon=True)
        watch.start()
    return log


def stop_when_asked(task: TaskDirectory) -> None:
    """Wait until a task is asked to stop, then interrupt this process's main thread like Ctrl-C."""
    while not task.stop_file.exists():
        time.sleep(_LOOK_EVERY_S)
    _thread.interrupt_main()


@contextlib.contextmanager
def recorded_end() -> Iterator[None]:
    """Record the process's exit code in the task's log; do nothing if it is not a task."""
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
    except Exception as error:  # any other error: it is recorded and raised again
        log.add("error", text=f"{type(error).__name__}: {error}")
        raise
    finally:
        log.add("ended", code=code)
