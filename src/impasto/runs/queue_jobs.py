"""A job of a queue: its settings, what is remembered beside them, and how it truly stands.

A job is a folder named by its number:

settings.toml   the settings of its run
job.json        its name, the folder in which relative paths begin, state, message, tries, times
try-1/          what the process of the first try told, as the directory of a task (`tasks.py`)

`job.json` cannot say that whoever wrote it was killed. So a job that says that it is worked on is
read together with the lock of its device, its process and its run directory.
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
"""Exit codes of a run that was asked to stop; negative ones of a process that had just begun."""

_TOLD_LINES = 6
_NOT_STORED = ("path",)


@dataclass(frozen=True)
class Job:
    """A run that waits in the queue, is being trained, or was.

    Attributes:
        path: Its folder.
        name: What a person calls it.
        folder: Where its relative paths begin.
        state: How it stands.
        message: Why it stands so; empty where there is nothing to say.
        tries: How often its run was begun or continued.
        added_at: When it was added, in seconds since 1970.
        began_at: When the newest try began; 0 if there was none.
        ended_at: When that ended; 0 while it lasts.
        device: The device of the newest try.
        runner: The process that worked on it, as a token of `owners.py`.
        pausing: Whether it is to be paused once its run has stopped.
        owns_run: Whether what is in its `output_dir` is its own run, to be resumed.
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
        """What the process of its newest try told."""
        return TaskDirectory(self.path / f"try-{self.tries}")

    @cached_property
    def run(self) -> RunDirectory | None:
        """Where its run goes; None where its settings do not tell."""
        try:
            return RunDirectory(self.folder / output_of(read_text(self.settings_file)))
        except (OSError, ValueError, ConfigError):
            return None

    @property
    def resolved_run(self) -> str:
        """The directory of the job's run in one form, to be compared; empty without one."""
        return "" if self.run is None else resolved_name(self.run.path)

    def as_json(self) -> dict[str, Any]:
        """The job as plain values, for programs; times are in seconds since 1970."""
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
    """A path after all links, as the system compares names."""
    return os.path.normcase(os.path.realpath(path))


def write_job(job: Job) -> None:
    """Write what is remembered of a job.

    Raises:
        StorageError: It cannot be written; what was there before is untouched.
    """
    files.write_json(job.path / RECORD, record_of(job))


def record_of(job: Job) -> dict[str, Any]:
    """What is written of a job."""
    said = {f.name: getattr(job, f.name) for f in dataclasses.fields(job)}
    return {
        k: str(v) if isinstance(v, Path) else v for k, v in said.items() if k not in _NOT_STORED
    }


def read_job(path: Path) -> Job | None:
    """A job as it was written; None where there is none. One that is damaged counts as failed."""
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
    """What is wrong with a record; empty where nothing is."""
    if not isinstance(said, Mapping):
        return "it is no object"
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
    """A job as it stands: with the outcome of a try whose runner is gone without noting it."""
    if job.state != "working" or is_at_work(job) or _has_runner(job, queue):
        return job
    if (now := read_job(job.path)) is not None and record_of(now) != record_of(job):
        return now  # its runner has just noted it
    state, message = outcome_of(job, None, is_left=True)
    return replace(job, state=state, message=message, pausing=False)


def is_at_work(job: Job) -> bool:
    """Whether a process trains a job's run, or is about to."""
    process = process_of(job)
    if process is not None and process.is_running():
        return True
    return job.owns_run and job.run is not None and job.run.state().is_alive


def process_of(job: Job) -> ProcessIdentity | None:
    """The process of a job's newest try, as far as it has said so."""
    return job.task.process() if job.tries else None


def _has_runner(job: Job, queue: Path) -> bool:
    holder: LockHolder | None = runner_of(queue, job.device)
    return holder is not None and holder.owner is not None and holder.owner.token == job.runner


def outcome_of(job: Job, code: int | None, *, is_left: bool) -> tuple[JobState, str]:
    """What became of a try whose process has ended.

    Args:
        job: The job.
        code: The exit code, where somebody has waited for it.
        is_left: Whether nobody goes on with other jobs: the runner was killed or is stopping. A run
            that was stopped or killed then waits to be continued.
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
    """How far its run is, where that is kept."""
    state = None if job.run is None or not job.owns_run else job.run.state()
    if state is None or not state.saved_step:
        return " No state of its run is saved: it begins anew."
    total = "" if state.total_steps is None else f" of {state.total_steps:,}"
    return f" It goes on from step {state.saved_step:,}{total}."


def _why(job: Job, said: str, code: int | None) -> str:
    """Why a try failed: its own words, else the last that it printed."""
    if said:
        return printable(said)
    if code is not None and code < 0:
        return f"Its process was killed (signal {-code}); by the system, if RAM ran out."
    status = {} if job.run is None or not job.owns_run else job.run.status()
    lines = "\n".join(job.task.last_lines(_TOLD_LINES)).strip()
    return str(status.get("message") or lines or f"It ended with exit code {code}.")


def why_not_begun(job: Job) -> str:
    """Why a job's run cannot have its directory; empty where it can, or where it is its own."""
    if job.owns_run or job.run is None:
        return ""
    try:
        RunDirectory.require_free(job.run.path)
    except RunError as error:
        return str(error)
    return ""
