"""The directory of a task: a command of Impasto that another program started, such as the studio.

`task.json`     its words, its title, when and by which process it was started
`events.jsonl`  stages, notes and warnings (`events.py`), then `error` and `ended`: `code`
`terminal.log`  what it printed

The command writes the events itself (it is told the directory by `IMPASTO_TASK`), so they are true
whatever becomes of the program that started it. A task without `ended` whose process is gone was
killed.
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
"""The environment variable that names the directory of the task that a process is."""

_STOPPED_CODES = (130, 143)
_TOLD_BYTES = 16 << 10
_SILENT_FOR_S = 600.0  # a long step of a task that counts nothing


@dataclass(frozen=True)
class TaskState:
    """How a task stands.

    Attributes:
        state: `starting`, `working`, `done`, `failed`, `stopped` or `killed`.
        stage: What it does now, or did last: `text`, `done`, `total` (or None), `unit`.
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
        """The message it ended with; empty where it has none."""
        return next((text for kind, text in reversed(self.messages) if kind == "error"), "")


@dataclass(frozen=True)
class _Told:
    """What a task has told so far.

    Attributes:
        begin: What its process said first; None before it did.
        stage: The last line of a stage.
        messages: Notes, warnings and errors.
        code: The exit code, once it has ended.
    """

    begin: Mapping[str, Any] | None = None
    stage: Mapping[str, Any] | None = None
    messages: tuple[tuple[str, str], ...] = ()
    code: int | None = None

    def with_events(self, events: Iterable[Mapping[str, Any]]) -> _Told:
        """What is told with more events after those that are known."""
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
    """Reads the events of a task on from where the last look ended: pages look every second."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._offset, self._told = 0, _Told()

    def read(self, file: Path) -> _Told:
        """What the events of a file tell by now."""
        with self._lock:
            if size_of(file) < self._offset:  # it is another file
                self._offset, self._told = 0, _Told()
            new = [*read_events(file, self._offset)]
            if new:
                self._offset = new[-1][0]
                self._told = self._told.with_events(event for _, event in new)
            return self._told


@dataclass(frozen=True)
class TaskDirectory:
    """The files of a task; whoever looks again and again keeps one, which reads on.

    Attributes:
        path: The directory.
    """

    path: Path
    _events: _EventReader = field(default_factory=_EventReader, compare=False, repr=False)

    @property
    def description_file(self) -> Path:
        """The file with the words, the title and the process of the task."""
        return self.path / "task.json"

    @property
    def events_file(self) -> Path:
        """The file with the events of the task."""
        return self.path / "events.jsonl"

    @property
    def terminal_log(self) -> Path:
        """The file with what the task has printed."""
        return self.path / "terminal.log"

    @property
    def stop_file(self) -> Path:
        """The file that asks it to stop; signals do not serve on Windows."""
        return self.path / "stop"

    def description(self) -> Mapping[str, Any]:
        """What `task.json` says; nothing where it is missing or damaged."""
        return read_object(self.description_file) or {}

    def process(self) -> ProcessIdentity | None:
        """The process that it is: as it said itself, or as whoever started it has noted."""
        said = self._begin()
        token = said.get("process") or self.description().get("process")
        return parse_process_token(token) if isinstance(token, str) else None

    def state(self, *, is_starting: bool = False) -> TaskState:
        """Whether the command works or how it ended, with what it has told so far.

        Args:
            is_starting: Whether whoever asks knows that its process has not ended.
        """
        told = self._events.read(self.events_file)
        if told.code is not None:
            return TaskState(_state_of(told.code), told.stage, told.messages, told.code)
        is_alive = is_starting or self._is_running()
        state = ("starting" if told.begin is None else "working") if is_alive else "killed"
        return TaskState(state, told.stage, told.messages)

    def _begin(self) -> Mapping[str, Any]:
        """What its process said first."""
        return self._events.read(self.events_file).begin or {}

    def _is_running(self) -> bool:
        """Whether its process lives.

        Of one in another place, or of before a restart of the machine: whether it said something of
        late.
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
        """The last lines that it printed."""
        return read_end(self.terminal_log, _TOLD_BYTES).splitlines()[-number:]


def current_task() -> TaskDirectory | None:
    """The task that this process is; None if it is none."""
    path = os.environ.get(TASK)
    return TaskDirectory(Path(path)) if path else None


def _state_of(code: int) -> str:
    if code in _STOPPED_CODES:
        return "stopped"
    return "failed" if code else "done"
