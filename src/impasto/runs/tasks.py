"""The directory of a task: a command of Impasto that another program, such as the studio, started.

`task.json`     its arguments, its title, when and by which process it was started
`events.jsonl`  stages, notes and warnings (`events.py`), then `error` and `ended`: `code`
`terminal.log`  its output

The command writes the events itself (`IMPASTO_TASK` names the directory), so they are true whatever
happens to the program that started it. A task without `ended` whose process is gone was killed.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from impasto.owners import ProcessIdentity, boot_mark, parse_process_token
from impasto.parsing import read_object
from impasto.runs.events import read_events
from impasto.runs.lines import read_end, size_of

TASK = "IMPASTO_TASK"
"""The environment variable that names the task directory of a process."""

_STOPPED_CODES = (130, 143)
_TOLD_BYTES = 16 << 10
_SILENT_FOR_S = 600.0  # longer than any step of a task without progress counts


@dataclass(frozen=True)
class TaskState:
    """The state of a task.

    Attributes:
        state: `starting`, `working`, `done`, `failed`, `stopped` or `killed`.
        stage: Its present or last stage: `text`, `done`, `total` (or None), `unit`.
        messages: Its notes, warnings and errors: kind and text.
        code: Its exit code, once it has ended.
    """

    state: str
    stage: Mapping[str, Any] | None = None
    messages: Sequence[tuple[str, str]] = ()
    code: int | None = None

    @property
    def is_alive(self) -> bool:
        """Whether the task is starting or working."""
        return self.state in ("starting", "working")

    @property
    def error(self) -> str:
        """The message with which it ended; empty if there is none."""
        return next((text for kind, text in reversed(self.messages) if kind == "error"), "")


@dataclass(frozen=True)
class _Told:
    """The events of a task so far.

    Attributes:
        begin: The first event of its process; None before that.
        stage: The last event of a stage.
        messages: Notes, warnings and errors.
        code: The exit code, once it has ended.
    """

    begin: Mapping[str, Any] | None = None
    stage: Mapping[str, Any] | None = None
    messages: tuple[tuple[str, str], ...] = ()
    code: int | None = None

    def with_events(self, events: Iterable[Mapping[str, Any]]) -> _Told:
        """Return these events with further ones added."""
        begin, stage, code = self.begin, self.stage, self.code
        messages: list[tuple[str, str]] = []
        for event in events:
            kind = event["kind"]
            if kind == "begin":
                begin = begin or event
            elif kind == "stage":
                stage = event
            elif kind in ("note", "warning", "error"):
                messages.append((kind, str(event.get("text", ""))))
            elif kind == "ended" and isinstance(event.get("code"), int):
                code = event["code"]
        return _Told(begin, stage, (*self.messages, *messages), code)


class _EventReader:
    """Reads the events of a task from where the last call ended: pages refresh every second."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._offset, self._told = 0, _Told()

    def read(self, file: Path) -> _Told:
        """Return the events of a file so far."""
        with self._lock:
            if size_of(file) < self._offset:  # the file was replaced
                self._offset, self._told = 0, _Told()
            new = [*read_events(file, self._offset)]
            if new:
                self._offset = new[-1][0]
                self._told = self._told.with_events(event for _, event in new)
            return self._told


@dataclass(frozen=True)
class TaskDirectory:
    """The files of a task; keep one object for repeated reads, which continue where the last ended.

    Attributes:
        path: The directory.
    """

    path: Path
    _events: _EventReader = field(default_factory=_EventReader, compare=False, repr=False)

    @property
    def description_file(self) -> Path:
        """The file with the arguments, the title and the process of the task."""
        return self.path / "task.json"

    @property
    def events_file(self) -> Path:
        """The file with the events of the task."""
        return self.path / "events.jsonl"

    @property
    def terminal_log(self) -> Path:
        """The file with the output of the task."""
        return self.path / "terminal.log"

    @property
    def stop_file(self) -> Path:
        """The file that tells it to stop, since signals do not work on Windows."""
        return self.path / "stop"

    def description(self) -> Mapping[str, Any]:
        """Return the content of `task.json`; empty if it is missing or damaged."""
        return read_object(self.description_file) or {}

    def process(self) -> ProcessIdentity | None:
        """Return the task's process, as recorded by itself or by the program that started it."""
        said = self._begin()
        token = said.get("process") or self.description().get("process")
        return parse_process_token(token) if isinstance(token, str) else None

    def state(self, *, is_starting: bool = False) -> TaskState:
        """Return whether the command is running or how it ended, with its events so far.

        Args:
            is_starting: Whether the caller knows that its process has not ended.
        """
        told = self._events.read(self.events_file)
        if told.code is not None:
            return TaskState(_state_of(told.code), told.stage, told.messages, told.code)
        is_alive = is_starting or self._is_running()
        state = ("starting" if told.begin is None else "working") if is_alive else "killed"
        return TaskState(state, told.stage, told.messages)

    def _begin(self) -> Mapping[str, Any]:
        """Return the first event of its process; empty before that."""
        return self._events.read(self.events_file).begin or {}

    def _is_running(self) -> bool:
        """Return whether its process is alive.

        For a process on another machine, or from before a restart of this one: whether it wrote an
        event recently.
        """
        process = self.process()
        running = False if process is None else process.is_running()
        said, boot = self._begin(), boot_mark()
        if running is None and said.get("host") == socket.gethostname() and boot:
            running = False if said.get("boot", boot) != boot else None
        if running is not None:
            return running
        try:
            return time.time() - self.events_file.stat().st_mtime < _SILENT_FOR_S
        except OSError:
            return False

    def last_lines(self, number: int = 40) -> list[str]:
        """Return the last lines of its output."""
        return read_end(self.terminal_log, _TOLD_BYTES).splitlines()[-number:]


def current_task() -> TaskDirectory | None:
    """Return the task of this process; None if it is not one."""
    path = os.environ.get(TASK)
    return TaskDirectory(Path(path)) if path else None


def _state_of(code: int) -> str:
    if code in _STOPPED_CODES:
        return "stopped"
    return "failed" if code else "done"
