"""The queue as plain values for templates, read from its folder."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path
from typing import Any

from impasto.invocation import command
from impasto.parsing import printable
from impasto.runs import RunDirectory
from impasto.runs.queue import Queue
from impasto.runs.queue_devices import device_name, plain_name, runners_of
from impasto.runs.queue_jobs import Job
from impasto.studio.core import Studio
from impasto.studio.pages.tasks import task_view

_NEWEST = 10
"""Number of newest queue tasks among which those of this queue are searched for."""

_LATEST = 2**33


def queue_view(studio: Studio) -> dict[str, Any]:
    """Return the content of the page: jobs in order, devices, and the newest task if it failed."""
    jobs = Queue(studio.queue).jobs()
    last = len(jobs) - 1
    return {
        "jobs": [
            {**_row(studio, job), "is_first": index == 0, "is_last": index == last}
            for index, job in enumerate(jobs)
        ],
        "waiting": sum(job.state == "waiting" for job in jobs),
        "beside": _beside(studio, jobs),
        "how_to_add": command("queue", "add", "--queue", studio.queue, "my-style.toml"),
        "devices": _devices(studio, jobs),
        "failure": _failure(studio),
        "folder": str(studio.queue),
    }


def _beside(studio: Studio, jobs: list[Job]) -> str:
    """Return the names of runs that seem to train outside the queue, joined by commas, or ""."""
    own = {job.run.path.absolute() for job in jobs if job.state == "working" and job.run}
    alive = (found.run.path for found in studio.folders.all_runs() if found.state.is_alive)
    return ", ".join(printable(path.name) for path in alive if path.absolute() not in own)


def is_worked_on(studio: Studio) -> bool:
    """Return whether a process works on the queue, or is starting to."""
    return bool(runners_of(studio.queue)) or is_starting(studio, 0)


def is_starting(studio: Studio, number: int) -> bool:
    """Return whether a task for a device, of this studio or an earlier one, is running."""
    return any(
        _device_in(arguments) == str(number) and studio.tasks.state_of(task).is_alive
        for task, arguments in _tasks(studio)
    )


def _row(studio: Studio, job: Job) -> dict[str, Any]:
    state = None if job.run is None else job.run.state()
    is_shown = state is not None and job.tries > 0 and job.owns_run
    total = state.total_steps if state is not None and is_shown else None
    return {
        "number": job.number,
        "name": job.name,
        "state": job.state,
        "pausing": job.pausing,
        "message": job.message,
        "place": "" if job.run is None else str(job.run.path),
        "address": _address(studio, job.run) if is_shown else "",
        "progress": {"step": state.step, "total": total} if state is not None and total else None,
        "details": state.details() if state is not None and is_shown else [],
        "stage": state.status.get("stage", "") if state is not None and state.is_alive else "",
        "device": job.device,
        "tries": job.tries,
        "when": _when(job),
        "printed": job.task.last_lines() if job.tries and job.state == "failed" else [],
    }


def _address(studio: Studio, run: RunDirectory | None) -> str:
    """Return the address of a run's page, or an empty text if the studio does not show it."""
    if run is None:
        return ""
    try:
        name = studio.folders.name_of(RunDirectory(Path(os.path.normpath(run.path))))
    except ValueError:
        return ""
    return f"/runs/{name}" if studio.folders.run_of(name) is not None else ""


def _when(job: Job) -> str:
    said, at = ("added", job.added_at)
    if job.began_at:
        said, at = ("ended", job.ended_at) if job.ended_at else ("started", job.began_at)
    if not 0 < at < _LATEST:
        return ""
    return f"{said} {time.strftime('%Y-%m-%d %H:%M', time.localtime(at))}"


def _devices(studio: Studio, jobs: list[Job]) -> list[dict[str, Any]]:
    """Return the devices in use, and in any case the first device, so that it can be started."""
    runners, first = runners_of(studio.queue), plain_name(device_name(0))
    found = []
    for name in sorted({*runners, first}, key=lambda name: (name != first, name)):
        holder = runners.get(name)
        found.append(
            {
                "name": name,
                "number": 0 if name == first else None,
                "holder": "" if holder is None else holder.description,
                "starting": holder is None and is_starting(studio, 0),
                "job": next((job for job in jobs if _is_on(job, name)), None),
            }
        )
    return found


def _is_on(job: Job, device: str) -> bool:
    return job.state == "working" and plain_name(job.device) == device


def _failure(studio: Studio) -> dict[str, Any] | None:
    """Return the newest task of the queue if it ended with an error, or None."""
    for task, _ in _tasks(studio):
        view = task_view(studio.tasks, task)
        return view if view["state"] in ("failed", "killed") else None
    return None


def _tasks(studio: Studio) -> list[tuple[Any, list[Any]]]:
    """Return the newest tasks that work on this queue, with their arguments."""
    found = []
    for task in itertools.islice(studio.tasks.newest("queue", "run"), _NEWEST):
        arguments = list(task.description().get("words", ()))
        if str(studio.queue) in arguments:
            found.append((task, arguments))
    return found


def _device_in(arguments: list[Any]) -> str:
    index = arguments.index("--device") + 1 if "--device" in arguments else len(arguments)
    return str(arguments[index]) if index < len(arguments) else "0"
