"""Starts commands as tasks, each with its own directory, and finds them again later."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from impasto import files, storage_errors, temporary_names
from impasto.errors import ImpastoError
from impasto.owners import identity_of
from impasto.runs.processes import ask_to_stop, start_apart
from impasto.runs.tasks import TASK, TaskDirectory, TaskState

TASKS = "tasks"
"""Name of the folder of tasks, in the folder of the studio."""

KEPT = 200
"""Number of tasks that are kept; older ones that have ended are removed."""


@dataclass(frozen=True)
class TaskResult:
    """The result that a task makes, so that the page of the task can link to it.

    Attributes:
        path: The run directory, file or folder.
        address: The address of its page.
        title: A description for the link: `the run dog`.
    """

    path: str
    address: str
    title: str


class Tasks:
    """The tasks of a folder.

    Args:
        folder: The folder of the task directories; created when first needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        self._found: dict[str, TaskDirectory] = {}  # each continues reading at its last position

    def start(
        self,
        arguments: Sequence[str | Path],
        title: str,
        back: str = "/",
        folder: Path | None = None,
        made: TaskResult | None = None,
    ) -> str:
        """Start an `impasto` command in a separate process, which continues when the studio ends.

        Args:
            arguments: The verb and its arguments.
            title: A short description for pages: `Tag 12 images`.
            back: The address of the page that it was started from, which shows its results.
            folder: The working directory, from which its relative paths are resolved.
            made: The result that it makes; None if that has no page.

        Returns:
            The name of the task in addresses.

        Raises:
            StorageError: The folder cannot be written.
        """
        self._tidy()
        about = {
            "words": [str(argument) for argument in arguments],
            "title": title,
            "back": back,
            "started_at": round(time.time(), 3),
            **({} if made is None else {"made": asdict(made)}),
        }
        with storage_errors.reported(self._folder):
            path = temporary_names.new_dated_folder(self._folder)
        task, name = TaskDirectory(path), path.name
        try:
            self._started[name] = _begin(task, about, arguments, folder)
        except (
            ImpastoError
        ):  # the disk is full: a task without files could be neither shown nor stopped
            with contextlib.suppress(OSError):
                files.remove_folder(task.path)
            raise
        return name

    def find(self, name: str) -> TaskDirectory | None:
        """Return the task with a name, or None if there is none."""
        if not temporary_names.is_dated_name(name):
            return None
        task = self._found.get(name) or TaskDirectory(self._folder / name)
        if not task.description_file.is_file():
            self._found.pop(name, None)
            return None
        return self._found.setdefault(name, task)

    def all(self) -> list[TaskDirectory]:
        """Return all tasks, the newest first."""
        try:
            names = sorted((path.name for path in self._folder.iterdir()), reverse=True)
        except OSError:
            return []
        found = (self.find(name) for name in names)
        return [task for task in found if task is not None]

    def newest(self, *arguments: str) -> Iterator[TaskDirectory]:
        """Yield the tasks whose command starts with the given arguments, the newest first."""
        for task in self.all():
            if tuple(task.description().get("words", ())[: len(arguments)]) == arguments:
                yield task

    def state_of(self, task: TaskDirectory) -> TaskState:
        """Return the state of a task, and reap its process if it has ended."""
        process = self._started.get(task.path.name)
        return task.state(is_starting=process is not None and process.poll() is None)

    def stop(self, task: TaskDirectory) -> None:
        """Ask a task to stop; do nothing if it has ended."""
        process = task.process()
        if self.state_of(task).is_alive and process is not None and process.is_running():
            files.write_text(task.stop_file, "")
            with contextlib.suppress(OSError):
                ask_to_stop(process.pid)

    def _tidy(self) -> None:
        for task in self.all()[KEPT:]:
            if not self.state_of(task).is_alive:
                with contextlib.suppress(OSError):
                    files.remove_folder(task.path)
                self._found.pop(task.path.name, None)


def _begin(
    task: TaskDirectory,
    about: Mapping[str, Any],
    arguments: Sequence[str | Path],
    folder: Path | None,
) -> subprocess.Popen[bytes]:
    """Start the process of a task; kill it at once if it cannot be recorded.

    Raises:
        StorageError: The folder cannot be written.
    """
    files.write_json(task.description_file, about)
    process = start_apart(arguments, task.terminal_log, folder, {TASK: str(task.path.resolve())})
    try:
        told = {**about, "process": identity_of(process.pid).token}
        files.write_json(task.description_file, told)
    except ImpastoError:
        process.kill()
        process.wait()
        raise
    return process
