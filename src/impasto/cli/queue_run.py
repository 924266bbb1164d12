"""Runs the jobs of a queue: one after the other on one device, each in a separate process.

That process also has its own session, so it survives if this runner is killed; the next runner of
the device waits for it, and continues runs that were killed together with their runner.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from impasto import files, locks, storage_errors
from impasto.errors import Interrupted, RunError
from impasto.invocation import command
from impasto.lock_file import LockHolder
from impasto.owners import ProcessIdentity, current_process, identity_of
from impasto.progress import Advance, Progress
from impasto.runs import RunDirectory
from impasto.runs.commands import discard_commands, send_command
from impasto.runs.processes import start_apart
from impasto.runs.queue import Queue
from impasto.runs.queue_devices import (
    VISIBLE,
    forget_stop,
    is_asked_to_stop,
    lock_name,
)
from impasto.runs.queue_jobs import Job, JobState, is_at_work, outcome_of, process_of
from impasto.runs.tasks import TASK, TaskDirectory
from impasto.training.signals import StoppedBySignal, signal_of

LOOK_EVERY_S = 1.0
_STOPPED_CODE = 143


@dataclass(frozen=True)
class Worker:
    """The process that trains a job's run.

    Attributes:
        job: The job.
        process: The process, if this runner has started it; None if a killed runner did.
    """

    job: Job
    process: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        """Whether the job's process is running."""
        return is_at_work(self.job) if self.process is None else self.process.poll() is None

    @property
    def code(self) -> int | None:
        """The exit code of the job's process; None if it is unknown or still running."""
        return None if self.process is None else self.process.poll()

    def ask_to_stop(self, *, now: bool = False) -> None:
        """Ask the process to save and stop, as Ctrl-C does; with `now`, as the second Ctrl-C does.

        On Windows, where signals do not work, this sends a command to the run; before the run has
        started, the process is terminated.
        """
        run, identity = self.job.run, self._identity()
        if sys.platform == "win32" and run is not None and run.state().is_alive:
            send_command(run.commands, "stop-now" if now else "stop")
        elif identity is not None and self.is_running:
            with contextlib.suppress(OSError):
                os.kill(identity.pid, signal.SIGINT if now else signal.SIGTERM)

    def _identity(self) -> ProcessIdentity | None:
        if self.process is not None:
            return ProcessIdentity(self.process.pid, 0, current_process().machine)
        found = process_of(self.job)
        if found is None and self.job.run is not None:
            holder = self.job.run.state().holder
            found = None if holder is None else holder.owner
        return found if found is not None and found.is_running() else None


class Runner:
    """Runs the jobs of a queue on one device.

    Args:
        queue: The queue.
        device: The name of the device in `CUDA_VISIBLE_DEVICES`.
        console: Prints messages, and shows the progress of a run.
        look_every_s: Seconds between two checks for requests and progress.
        options: Options of `impasto queue run` besides the folder, for the printed command.
    """

    def __init__(
        self,
        queue: Queue,
        device: str,
        console: Progress,
        look_every_s: float = LOOK_EVERY_S,
        options: Sequence[str] = (),
    ) -> None:
        self._queue, self._device, self._console = queue, device, console
        self._look_every_s, self._options = look_every_s, options

    def work(self, *, wait: bool) -> None:
        """Run jobs until none is waiting.

        Args:
            wait: Whether to wait for new jobs after that, until stopped.

        Raises:
            Interrupted: The runner was asked to stop; the run has saved its state.
            RunError: Another process is using the device.
            StorageError: The queue cannot be written: no other job is started then.
        """
        folder = self._queue.folder
        with storage_errors.reported(folder):
            folder.mkdir(parents=True, exist_ok=True)
        what = f"working on device {self._device}"
        with locks.FolderLock(folder, what, self._refuse, lock_name(self._device)):
            forget_stop(folder, self._device)
            try:
                self._work(wait=wait)
            except KeyboardInterrupt as stop:
                raise Interrupted(
                    "Stopped between two jobs. Continue with: " + self._again, signal_of(stop)
                ) from stop
            finally:
                forget_stop(folder, self._device)

    def _work(self, *, wait: bool) -> None:
        while (left := self._queue.adopt(self._device)) is not None:
            self._say(left, "its process outlived its runner; waiting for it to end.")
            self._see_through(Worker(left))
        ended, waiting_said = 0, False
        while True:
            job = self._queue.claim(self._device)
            if job is not None:
                self._begin(job)
                ended, waiting_said = ended + 1, False
            elif not wait:
                break
            else:
                if not waiting_said:
                    self._console.note("No jobs are waiting. Waiting for new ones ...")
                waiting_said = True
                self._pause()
        self._console.note("No more jobs are waiting." if ended else "No jobs are waiting.")

    def _begin(self, job: Job) -> None:
        """Start the process of a job, and wait for it to end."""
        if not job.folder.is_dir():
            gone = f"{job.folder}, which its relative paths refer to, does not exist any more."
            self._end(job, "failed", gone)
            return
        arguments = arguments_for(job)
        where = "" if job.run is None else f" in {job.run.path}"
        self._say(job, f"{'continues' if arguments[0] == 'resume' else 'starts'}{where}.")
        with storage_errors.reported(job.task.path):
            job.task.path.mkdir(exist_ok=True)
        environment = {TASK: str(job.task.path), VISIBLE: self._device}
        process = start_apart(arguments, job.task.terminal_log, job.folder, environment)
        token = identity_of(
            process.pid
        ).token  # before its own record, in case this process is killed now
        files.write_json(job.task.description_file, {"words": arguments, "process": token})
        self._see_through(Worker(job, process))

    def _see_through(self, worker: Worker) -> None:
        """Wait for the end of a job's process, and record the outcome.

        Raises:
            Interrupted: This process was asked to stop, and has stopped the job.
        """
        job, stopped, asked = worker.job, None, False
        try:
            asked = self._watch(worker)
        except KeyboardInterrupt as stop:
            stopped, asked = stop, True
            self._say(job, "stops after this step; press Ctrl-C again to stop without saving.")
            self._stop(worker)
        code = worker.code
        if asked and code is not None and job.task.state().code is None and code > 0:
            code = _STOPPED_CODE  # it was terminated before it could record that
        written = self._queue.read(job)
        state, message = outcome_of(written, code, is_left=stopped is not None)
        self._end(written, state, message)
        if stopped is not None:
            raise Interrupted(
                f"Job {job.number} has stopped. Continue with: {self._again}", signal_of(stopped)
            ) from stopped

    def _watch(self, worker: Worker) -> bool:
        """Show the progress of a run until it ends; return whether the job was asked to pause."""
        asked, run = False, worker.job.run
        with contextlib.ExitStack() as shown:
            steps = None if run is None else _Steps(run, _title(worker.job), self._console, shown)
            while worker.is_running:
                if steps is not None:
                    steps.look()
                if not asked and self._queue.read(worker.job).pausing:
                    asked = True
                    self._say(worker.job, "is paused: it stops after this step.")
                    worker.ask_to_stop()
                self._pause()
            if steps is not None:
                steps.look(has_ended=True)
        return asked

    def _stop(self, worker: Worker) -> None:
        """Stop a job's process and wait for it; a second interrupt stops it without saving."""
        for now in (False, True):
            worker.ask_to_stop(now=now)
            try:
                while worker.is_running:
                    time.sleep(self._look_every_s)
            except KeyboardInterrupt:
                if now:
                    raise
            else:
                return

    def _end(self, job: Job, state: JobState, message: str) -> None:
        """Record the outcome of a job; it owns the run directory if its process has locked it."""
        owns_run = job.run is not None and _is_by(job.run, job)
        self._queue.end(job, state, message, owns_run=owns_run)
        self._say(job, f"{state}. {message}".strip() if message else f"{state}.")

    def _pause(self) -> None:
        """Wait until the next check.

        Raises:
            StoppedBySignal: This process was asked to stop, through a file.
        """
        time.sleep(self._look_every_s)
        if is_asked_to_stop(self._queue.folder, self._device, current_process().token):
            forget_stop(self._queue.folder, self._device)
            raise StoppedBySignal(signal.SIGTERM)

    def _say(self, job: Job, text: str) -> None:
        self._console.note(f"{_title(job)}: {text}")

    @property
    def _again(self) -> str:
        return command("queue", "run", "--queue", self._queue.folder, *self._options)

    def _refuse(self, holder: LockHolder) -> None:
        raise RunError(
            f"Device {self._device} of {self._queue.folder} is already in use by "
            f"{holder.description}. A device trains one job at a time: jobs that you add to the "
            f"queue are trained there."
        )


class _Steps:
    """Shows a progress bar of a run, with the steps that are left in this attempt.

    Args:
        run: The run.
        title: The title of the bar.
        console: Shows the bar.
        shown: Removes the bar when it is closed.
    """

    def __init__(
        self, run: RunDirectory, title: str, console: Progress, shown: contextlib.ExitStack
    ) -> None:
        self._run, self._title, self._console, self._shown = run, title, console, shown
        self._advance: Advance | None = None
        state = run.state()
        self._done = state.step if state.is_alive else state.saved_step

    def look(self, *, has_ended: bool = False) -> None:
        """Move the bar to the run's current step; show it once the run has reported its length."""
        state = self._run.state()
        if not state.total_steps or not (has_ended or state.is_alive):
            return
        if self._advance is None and not has_ended:
            stage = self._console.stage(self._title, state.total_steps - self._done, "steps")
            self._advance = self._shown.enter_context(stage)
        if self._advance is not None and state.step > self._done:
            self._advance(state.step - self._done)
            self._done = state.step


def arguments_for(job: Job) -> list[str]:
    """Return the arguments of `impasto` for the next attempt of a job claimed by this process.

    If the job's own run has written its settings, it is resumed: from its newest state, or from
    the beginning if it was killed before it had one, a directory that `train` would reject. A run
    that was killed even earlier is started again.
    """
    run = job.run
    if run is not None and run.config_file.is_file():
        return ["resume", str(run.path)]
    if run is not None and run.path.is_dir():
        discard_commands(run.commands)
    return ["train", str(job.settings_file)]


def _is_by(run: RunDirectory, job: Job) -> bool:
    """Return whether the last process that wrote to a run was an attempt of this job."""
    tries = (TaskDirectory(job.path / f"try-{number}") for number in range(1, job.tries + 1))
    tokens = {process.token for task in tries if (process := task.process()) is not None}
    return run.is_there() and run.status().get("process") in tokens


def _title(job: Job) -> str:
    return f"Job {job.number}, {job.name}"
