"""A job of a queue: its settings, its record, and its true state.

A job is a folder named by its number:

settings.toml   the settings of its run
job.json        its name, the folder at which relative paths start, state, message, tries, times
try-1/          the output of the first try's process, as the directory of a task (`tasks.py`)

`job.json` cannot record that its writer was killed. So a job with the state `working` is read
together with the lock of its device, its process and its run directory.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from impasto import files
from impasto.errors import ConfigError, RunError
from impasto.lock_file import LockHolder
from impasto.owners import ProcessIdentity
from impasto.parsing import parse_json, printable, read_text
from impasto.runs.directory import RunDirectory
from impasto.runs.queue_devices import runner_of
from impasto.runs.queue_settings import output_of
from impasto.runs.tasks import TaskDirectory

JobState = Literal["waiting", "paused", "working", "done", "failed", "stopped"]

SETTINGS, RECORD = "settings.toml", "job.json"
STOPPED_CODES = (130, 143, -2, -15)
"""Exit codes of a run that was told to stop; negative ones if its process had only just started."""

_TOLD_LINES = 6
_NOT_STORED = ("path",)


@dataclass(frozen=True)
class Job:
    """A run that waits in the queue, is being trained, or has been.

    Attributes:
        path: Its folder.
        name: Its display name.
        folder: The folder at which its relative paths start.
        state: Its state.
        message: The reason for the state; empty if there is nothing to say.
        tries: How often its run was started or resumed.
        added_at: When it was added, in seconds since 1970.
        began_at: When the latest try started; 0 if there was none.
        ended_at: When that ended; 0 while it lasts.
        device: The device of the latest try.
        runner: The process that worked on it, as a token of `owners.py`.
        pausing: Whether to pause it once its run has stopped.
        owns_run: Whether the run in its `output_dir` is its own, to be resumed.
        repeats: The `output_dir` of the job that it repeats; empty if it is the first.
    """

    path: Path
    name: str
    folder: Path
    state: JobState = "waiting"
    message: str = ""
    tries: int = 0
    added_at: float = 0.0
    began_at: float = 0.0
    ended_at: float = 0.0
    device: str = ""
    runner: str = ""
    pausing: bool = False
    owns_run: bool = False
    repeats: str = ""

    @property
    def number(self) -> int:
        """The job's number, which no other job of the queue ever has."""
        return int(self.path.name)

    @property
    def settings_file(self) -> Path:
        """The file with the settings of the run that the job trains."""
        return self.path / SETTINGS

    @property
    def task(self) -> TaskDirectory:
        """The task directory of its latest try."""
        return TaskDirectory(self.path / f"try-{self.tries}")

    @cached_property
    def run(self) -> RunDirectory | None:
        """The run directory of the job; None if its settings cannot be read."""
        try:
            return RunDirectory(self.folder / output_of(read_text(self.settings_file)))
        except (OSError, ValueError, ConfigError):
            return None

    @property
    def resolved_run(self) -> str:
        """The resolved path of the job's run directory, for comparison; empty without one."""
        return "" if self.run is None else resolved_name(self.run.path)

    def as_json(self) -> dict[str, Any]:
        """Return the job as plain values, for programs; times are in seconds since 1970."""
        run = self.run
        return {
            "number": self.number,
            "name": self.name,
            "state": self.state,
            "message": self.message,
            "run": None if run is None else str(run.path),
            "folder": str(self.folder),
            "settings": str(self.settings_file),
            "tries": self.tries,
            "device": self.device,
            "added_at": self.added_at,
            "began_at": self.began_at or None,
            "ended_at": self.ended_at or None,
        }


def resolved_name(path: Path) -> str:
    """Return a path with links resolved, normalized as the system compares names."""
    return os.path.normcase(os.path.realpath(path))


def write_job(job: Job) -> None:
    """Write the record of a job.

    Raises:
        StorageError: It cannot be written; the old record is unchanged.
    """
    files.write_json(job.path / RECORD, record_of(job))


def record_of(job: Job) -> dict[str, Any]:
    """Return the record of a job, as it is written."""
    said = {f.name: getattr(job, f.name) for f in dataclasses.fields(job)}
    return {
        k: str(v) if isinstance(v, Path) else v for k, v in said.items() if k not in _NOT_STORED
    }


def read_job(path: Path) -> Job | None:
    """Return a job as it was written; None if it does not exist. A damaged one counts as failed."""
    try:
        said = parse_json(read_text(path / RECORD), halves=True)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        return Job(path, path.name, Path(), "failed", f"{RECORD} cannot be read: {error}")
    fault = _fault_in(said)
    if fault:
        return Job(path, path.name, Path(), "failed", f"{RECORD} is damaged: {fault}")
    known = {f.name for f in dataclasses.fields(Job)} - set(_NOT_STORED)
    values = {k: v for k, v in said.items() if k in known}
    return Job(path, **{**values, "folder": Path(said["folder"])})


def _fault_in(said: Any) -> str:
    """Return what is wrong with a record; empty if nothing is."""
    if not isinstance(said, Mapping):
        return "it is not an object"
    for field in dataclasses.fields(Job):
        if field.name in _NOT_STORED or (field.name not in said and field.name != "folder"):
            continue
        value, default = said.get(field.name), field.default
        wanted: tuple[type, ...] = (str,) if default is dataclasses.MISSING else (type(default),)
        wanted = (int, float) if wanted == (float,) else wanted
        is_other = isinstance(value, bool) and bool not in wanted  # to Python, True is an int
        if not isinstance(value, wanted) or is_other:
            return f"{field.name} is {json.dumps(value)[:60]}"
    if not isinstance(said.get("name"), str) or said.get("state") not in get_args(JobState):
        return "it has no name, or an unknown state"
    return ""


def true_standing(job: Job, queue: Path) -> Job:
    """Return a job in its true state: with the outcome of a try whose runner ended unrecorded."""
    if job.state != "working" or is_at_work(job) or _has_runner(job, queue):
        return job
    if (now := read_job(job.path)) is not None and record_of(now) != record_of(job):
        return now  # its runner has just recorded it
    state, message = outcome_of(job, None, is_left=True)
    return replace(job, state=state, message=message, pausing=False)


def is_at_work(job: Job) -> bool:
    """Return whether a process trains a job's run, or is about to."""
    process = process_of(job)
    if process is not None and process.is_running():
        return True
    return job.owns_run and job.run is not None and job.run.state().is_alive


def process_of(job: Job) -> ProcessIdentity | None:
    """Return the process of a job's latest try; None if it is not recorded."""
    return job.task.process() if job.tries else None


def _has_runner(job: Job, queue: Path) -> bool:
    holder: LockHolder | None = runner_of(queue, job.device)
    return holder is not None and holder.owner is not None and holder.owner.token == job.runner


def outcome_of(job: Job, code: int | None, *, is_left: bool) -> tuple[JobState, str]:
    """Return the state and message of a job whose latest try has ended.

    Args:
        job: The job.
        code: The exit code, if it is known.
        is_left: Whether no runner continues with other jobs, since it was killed or is stopping. A
            run that was stopped or killed then waits to be continued.
    """
    task = job.task.state()
    code = task.code if code is None else code
    state = job.run.state() if job.run is not None and job.owns_run else None
    if code == 0 or (code is None and state is not None and state.state == "finished"):
        return "done", ""
    has_failed = code is None and state is not None and state.state == "failed"
    kept = _kept(job)
    if code is None and not has_failed:
        if job.pausing:
            return "paused", f"It was paused.{kept}"
        reason = "Its process was killed, or the machine went down."
        return ("waiting", f"{reason}{kept}") if is_left else ("failed", f"{reason}{kept}")
    if code in STOPPED_CODES:
        if job.pausing:
            return "paused", f"It was paused.{kept}"
        return ("waiting" if is_left else "stopped"), f"It was stopped.{kept}"
    return "failed", _why(job, task.error, code) + (kept if code is not None and code < 0 else "")


def _kept(job: Job) -> str:
    """Return a sentence on the step from which its run will continue."""
    state = None if job.run is None or not job.owns_run else job.run.state()
    if state is None or not state.saved_step:
        return " No state of its run is saved: it starts again from the beginning."
    total = "" if state.total_steps is None else f" of {state.total_steps:,}"
    return f" It continues from step {state.saved_step:,}{total}."


def _why(job: Job, said: str, code: int | None) -> str:
    """Return why a try failed: its own message, else the last lines of its output."""
    if said:
        return printable(said)
    if code is not None and code < 0:
        return f"Its process was killed (signal {-code}); by the system, if RAM ran out."
    status = {} if job.run is None or not job.owns_run else job.run.status()
    lines = "\n".join(job.task.last_lines(_TOLD_LINES)).strip()
    return str(status.get("message") or lines or f"It ended with exit code {code}.")


def why_not_begun(job: Job) -> str:
    """Return why a job's run cannot use its directory; empty if it can, or if the run exists."""
    if job.owns_run or job.run is None:
        return ""
    try:
        RunDirectory.require_free(job.run.path)
    except RunError as error:
        return str(error)
    return ""
