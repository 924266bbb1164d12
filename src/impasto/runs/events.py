"""`events.jsonl` of a run directory: what happened in the course of a run, with times.

One JSON object per line, each with `time` (seconds since 1970) and `kind`:

begin      a process took the run up: `pid`, `host`
stage      work other than training: `text`, `total`, `unit`, and `done` as it goes on; `ended` is
           true in the last line of it, and `failed` where it ended with an error
note       a line that the terminal shows: `text`
warning    the same, of something that may be wrong
training   training begins: `step`, `total_steps`
step       a line of metrics was written at `step`; the numbers are in `metrics.jsonl`
command    what became of a command (`commands.py`): `id`, `command`, `text`
end        the process let the run go

Readers skip lines that they cannot read and kinds that they do not know. The file grows by what a
person would see, not by steps; nothing in a run depends on it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from impasto import files
from impasto.errors import StorageError
from impasto.parsing import printable
from impasto.runs.lines import read_lines

WARNING = "Warning: "


class EventLog:
    """Adds lines to `events.jsonl`. What comes before the file is known is kept until it is.

    A line that cannot be written, because the disk is full, is left out: the run itself says so
    where it matters.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._file: Path | None = None
        self._waiting: list[str] = []

    def open(self, file: Path) -> None:
        """Write to `file` from now on, first what has come so far."""
        with self._lock:
            self._file = file
            lines, self._waiting = self._waiting, []
            if _ends_within_a_line(file):
                lines.insert(0, "\n")
            self._append("".join(lines))
        self.add("begin", pid=os.getpid(), host=socket.gethostname())

    def drop(self) -> None:
        """Write nothing more: the run is being removed."""
        with self._lock:
            self._file = None

    def add(self, kind: str, **details: Any) -> None:
        """Add an event of now."""
        told = {k: printable(v) if isinstance(v, str) else v for k, v in details.items()}
        line = files.json_text({"time": round(time.time(), 3), "kind": kind, **told}) + "\n"
        with self._lock:
            if self._file is None:
                self._waiting.append(line)
            else:
                self._append(line)

    def note(self, message: str) -> None:
        """Add a line that the terminal shows."""
        is_warning = message.startswith(WARNING)
        self.add("warning" if is_warning else "note", text=message.removeprefix(WARNING))

    def _append(self, text: str) -> None:
        if self._file is not None and text and self._file.parent.is_dir():
            with contextlib.suppress(StorageError):
                files.append_text(self._file, text)


def read_events(file: Path, offset: int = 0) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The events from a place in the file on, each with the place after it.

    A line that is still being written is left for the next time.

    Args:
        file: `events.jsonl`; nothing comes of one that is not there.
        offset: Bytes to pass over: where an earlier reading ended.
    """
    for place, event in read_lines(file, offset):
        if isinstance(event.get("kind"), str):
            yield place, event


def _ends_within_a_line(file: Path) -> bool:
    """Whether a process was killed while it wrote a line."""
    try:
        with file.open("rb") as content:
            content.seek(-1, os.SEEK_END)
            return content.read(1) != b"\n"
    except OSError:  # missing, or empty
        return False
