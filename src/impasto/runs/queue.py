"""A queue of runs: a folder of jobs, stored in the file system alone (`queue_folder.py`).

Changes are made under a lock, so any number of programs can add, move and take jobs at the same
time. `cli/queue_run.py` trains the jobs.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from impasto import files, storage_errors
from impasto.errors import ConfigError, RunError
from impasto.owners import current_process
from impasto.parsing import read_text
from impasto.runs.commands import send_command
from impasto.runs.directory import RunDirectory
from impasto.runs.queue_devices import runner_of
from impasto.runs.queue_folder import QueueFolder
from impasto.runs.queue_jobs import (
    Job,
    JobState,
    is_at_work,
    read_job,
    resolved_name,
    true_standing,
    why_not_begun,
    write_job,
)
from impasto.runs.queue_settings import output_of, with_output

Direction = Literal["up", "down", "first", "last", "before", "after"]

_LONGEST_NAME = 200


class Queue:
    """The jobs of a folder.

    Args:
        folder: The folder; created when the first job is added.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(os.path.abspath(folder))  # noqa: PTH100 - links stay as they are
        self._disk = QueueFolder(self.folder)

    def jobs(self) -> list[Job]:
        """Return all jobs in their true state, in order."""
        return [true_standing(job, self.folder) for job in self._disk.jobs()]

    def find(self, number: int) -> Job:
        """Return a job by its number.

        Raises:
            RunError: There is none.
        """
        job = read_job(self._disk.path_of(number))
        if job is None:
            numbers = ", ".join(str(job.number) for job in self._disk.jobs()) or "none"
            raise RunError(f"There is no job {number} in {self.folder}. Jobs there: {numbers}.")
        return true_standing(job, self.folder)

    def add(self, text: str, name: str, folder: Path, *, paused: bool = False) -> Job:
        """Add a job at the end.

        Args:
            text: The settings of its run, as TOML; they are stored unchanged.
            name: Its display name; empty for the name of its run directory.
            folder: The folder at which relative paths in the settings start.
            paused: Whether it is paused until it is continued.

        Raises:
            ConfigError: The settings are not TOML, or have no `output_dir`.
            RunError: The `output_dir` is taken, or is that of another job.
            StorageError: It cannot be written; the queue is unchanged.
        """
        folder = Path(os.path.abspath(folder))  # noqa: PTH100
        run = folder / output_of(text)
        RunDirectory.require_free(run)
        with self._disk.changing():
            self._require_nobody_elses(run)
            state: JobState = "paused" if paused else "waiting"
            return self._disk.appear(
                text, Job(Path(), name[:_LONGEST_NAME] or run.name, folder, state)
            )

    def repeat(self, number: int) -> Job:
        """Add a job with the settings of another and a new `output_dir`: with `-2`, `-3`.

        Raises:
            RunError: There is no job with that number.
            ConfigError: Its settings cannot be read.
            StorageError: It cannot be written.
        """
        with self._disk.changing():
            job = self.find(number)
            text = _settings_of(job)
            first = job.repeats or output_of(text)
            output = self._next_free(first, job.folder)
            again = Job(Path(), job.name, job.folder, repeats=first)
            return self._disk.appear(with_output(text, output), again)

    def move(self, number: int, to: Direction, other: int | None = None) -> None:
        """Change the position of a job in the queue.

        Args:
            number: The job.
            to: One place up or down; first, last; before or after another job.
            other: That other job.

        Raises:
            RunError: There is no such job, or the other one is missing or of no use.
        """
        if to in ("before", "after") and other is None:
            raise RunError(
                f"Give the job to move it {to}, as in: impasto queue move {number} {to} 3."
            )
        if other is not None and to not in ("before", "after"):
            raise RunError(f"{to} takes no other job; expected before or after {other}.")
        with self._disk.changing():
            self.find(number)
            order = [job.number for job in self._disk.jobs()]
            index = order.index(number)
            order.remove(number)
            if to in ("before", "after"):
                if other != number:
                    index = order.index(self.find(other or 0).number) + (to == "after")
            else:
                steps = {"up": max(0, index - 1), "down": index + 1, "first": 0, "last": len(order)}
                index = steps[to]
            order.insert(index, number)
            self._disk.write_order(order)

    def pause(self, number: int) -> Job:
        """Pause a waiting job; one that is being trained stops after its step, with a state saved.

        Raises:
            RunError: It is neither waiting nor being trained.
            StorageError: It cannot be written.
        """

        def paused(job: Job) -> Job:
            if job.state != "working":
                return replace(job, state="paused")
            is_left = runner_of(self.folder, job.device) is None
            if is_left and job.run is not None and job.run.state().is_alive:
                send_command(job.run.commands, "stop")  # no runner is left to stop it
            return replace(job, pausing=True)

        return self._change(number, "pause", ("waiting", "working"), paused)

    def go_on(self, number: int) -> Job:
        """Put a job that was paused or stopped back in the queue.

        Raises:
            RunError: It was neither.
            StorageError: It cannot be written.
        """
        return self._change(number, "continue", ("paused", "stopped"), _waiting)

    def retry(self, number: int) -> Job:
        """Put a job that failed or was stopped back in the queue; its run is resumed.

        Raises:
            RunError: It was neither.
            StorageError: It cannot be written.
        """
        return self._change(number, "retry", ("failed", "stopped"), _waiting)

    def remove(self, number: int) -> None:
        """Remove a job; its run directory is kept.

        Raises:
            RunError: It is being trained.
        """
        with self._disk.changing():
            job = self.find(number)
            if job.state == "working":
                raise RunError(
                    f"Job {number} is being trained, so it was not removed. Pause it first."
                )
            with storage_errors.reported(job.path):
                files.remove_folder(job.path)
            if job.path.exists():
                raise RunError(f"{job.path} could not be removed: a program has a file in it open.")

    # methods for the process that trains the jobs

    def claim(self, device: str) -> Job | None:
        """Take the first waiting job for this process alone; None if there is none.

        A job whose run is being trained by another process keeps waiting. A job whose `output_dir`
        is taken by something else fails.

        Raises:
            StorageError: It cannot be written.
        """
        with self._disk.changing():
            for job in self.jobs():
                if job.state != "waiting" or is_at_work(job):
                    continue
                fault = why_not_begun(job)
                if fault:
                    write_job(replace(job, state="failed", message=fault, ended_at=time.time()))
                    continue
                taken = replace(
                    job,
                    state="working",
                    message="",
                    tries=job.tries + 1,
                    began_at=time.time(),
                    ended_at=0.0,
                    device=device,
                    runner=current_process().token,
                    owns_run=True,
                )
                write_job(taken)
                return taken
        return None

    def adopt(self, device: str) -> Job | None:
        """Take over a job whose runner is gone while its process trains; None if there is none.

        Raises:
            StorageError: It cannot be written.
        """
        with self._disk.changing():
            for job in self.jobs():
                if job.state == "working" and job.device == device and is_at_work(job):
                    if job.runner == current_process().token:
                        continue
                    taken = replace(job, runner=current_process().token)
                    write_job(taken)
                    return taken
        return None

    def read(self, job: Job) -> Job:
        """Return a job of this process with changes that others have requested meanwhile."""
        return read_job(job.path) or job

    def end(self, job: Job, state: JobState, message: str, *, owns_run: bool) -> None:
        """Record the outcome of a job of this process.

        Raises:
            StorageError: It cannot be written.
        """
        with self._disk.changing():
            now = read_job(job.path) or job
            ended = replace(
                now,
                state=state,
                message=message,
                ended_at=time.time(),
                runner="",
                pausing=False,
                owns_run=owns_run,
            )
            write_job(ended)

    def _change(
        self,
        number: int,
        what: str,
        possible: tuple[JobState, ...],
        changed: Callable[[Job], Job],
    ) -> Job:
        with self._disk.changing():
            job = self.find(number)
            if job.state not in possible:
                raise RunError(
                    f"Job {number} is {job.state}. The command {what} works only on jobs in "
                    f"the state {' or '.join(possible)}."
                )
            result = changed(job)
            write_job(result)
            return result

    def _require_nobody_elses(self, run: Path) -> None:
        resolved = resolved_name(run)
        for job in self._disk.jobs():
            if job.resolved_run == resolved:
                raise RunError(
                    f"output_dir is {run}, which is also that of job {job.number}, {job.name}. "
                    f"Choose another output_dir, or remove that job."
                )

    def _next_free(self, first: str, folder: Path) -> str:
        """Return the first of `first-2`, `first-3`, ... that is free and belongs to no job."""
        taken = {job.resolved_run for job in self._disk.jobs()}
        base = first.rstrip("/\\") or first
        for number in itertools.count(2):
            path = folder / f"{base}-{number}"
            if resolved_name(path) not in taken and not os.path.lexists(path):
                return f"{base}-{number}"
        raise AssertionError


def _settings_of(job: Job) -> str:
    """Return the text of a job's settings.

    Raises:
        ConfigError: They cannot be read: the file was changed or removed.
    """
    try:
        return read_text(job.settings_file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{job.settings_file} cannot be read: {error}.") from error


def _waiting(job: Job) -> Job:
    return replace(job, state="waiting", message="", pausing=False)
