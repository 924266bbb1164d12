"""`events.jsonl` of a run directory: the events of a run, with times.

One JSON object per line, each with `time` (seconds since 1970) and `kind`:

begin      a process started or resumed the run: `pid`, `host`, `process` (its token in
           `owners.py`), `boot` (an id that changes with each start of the machine)
stage      work other than training: `text`, `total`, `unit`, and `done` as it proceeds; `ended` is
           true in its last line, and `failed` if it ended with an error
note       a line that the terminal shows: `text`
warning    the same, about a possible problem
training   training starts: `step`, `total_steps`
step       a line of metrics was written at `step`; the numbers are in `metrics.jsonl`
command    the result of a command (`commands.py`): `id`, `command`, `text`
end        the process released the run
error      of a task (`tasks.py`): the message with which it ended, `text`
ended      of a task: the exit code, `code`

Readers skip lines that they cannot read and kinds that they do not know. The file grows with what a
user would see, not with steps; nothing in a run depends on it.
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
from impasto.owners import boot_mark, current_process
from impasto.parsing import printable
from impasto.progress import Advance, counted
from impasto.runs.lines import read_lines

WARNING = "Warning: "
PROGRESS_EVERY_S = 5.0

_COUNTS = ("done", "total")


class EventLog:
    """Appends lines to `events.jsonl`; lines from before the file is known are stored until then.

    A line that cannot be written, because the disk is full, is dropped: the run itself reports a
    full disk where it matters.

    Args:
        progress_every_s: Seconds between two lines about the progress of a stage.
    """

    def __init__(self, progress_every_s: float = PROGRESS_EVERY_S) -> None:
        self._lock = threading.Lock()
        self._progress_every_s = progress_every_s
        self._file: Path | None = None
        self._waiting: list[str] = []

    def open(self, file: Path) -> None:
        """Write to `file` from now on, starting with the lines stored so far."""
        with self._lock:
            self._file = file
            lines, self._waiting = self._waiting, []
            if _ends_within_a_line(file):
                lines.insert(0, "\n")
            self._append("".join(lines))
        self.add(
            "begin",
            pid=os.getpid(),
            host=socket.gethostname(),
            process=current_process().token,
            boot=boot_mark(),
        )

    def drop(self) -> None:
        """Write nothing more: the run is being removed."""
        with self._lock:
            self._file = None

    def add(self, kind: str, **details: Any) -> None:
        """Add an event with the present time."""
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

    @contextlib.contextmanager
    def stage(self, description: str, total: int | None, unit: str) -> Iterator[Advance]:
        """Add a stage: its start, its progress every few seconds, and its end."""
        done, written_at, failed = 0, time.monotonic(), True

        def tell(**more: Any) -> None:
            self.add("stage", text=description, total=total, unit=unit, done=done, **more)

        def count(number: int) -> None:
            nonlocal done, written_at
            done += number
            if time.monotonic() - written_at > self._progress_every_s:
                written_at = time.monotonic()
                tell()

        tell()
        try:
            yield count
            failed = False
        finally:
            tell(ended=True, **({"failed": True} if failed else {}))

    def _append(self, text: str) -> None:
        if self._file is not None and text and self._file.parent.is_dir():
            with contextlib.suppress(StorageError):
                files.append_text(self._file, text)


def read_events(file: Path, offset: int = 0) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the events after a position in the file, each with the position after it.

    A line that is still being written is left for the next call.

    Args:
        file: `events.jsonl`; if it does not exist, nothing is yielded.
        offset: Bytes to skip: the position at which an earlier call ended.
    """
    for position, event in read_lines(file, offset):
        if isinstance(event.get("kind"), str):
            yield position, event


def stage_text(stage: Mapping[str, Any]) -> str:
    """Return a stage as text: its description, and its progress if it counts something.

    Args:
        stage: An event of that kind; invalid entries of it are ignored.
    """
    text, unit = str(stage.get("text", "")), str(stage.get("unit", ""))
    done, total = (value if isinstance(value, int) else 0 for value in map(stage.get, _COUNTS))
    if total and not (stage.get("ended") and done == total):
        return f"{text}: {done:,} of {counted(total, unit)}"
    return f"{text}: {counted(done, unit)}" if done else text


def _ends_within_a_line(file: Path) -> bool:
    """Return whether a process was killed while it wrote a line."""
    try:
        with file.open("rb") as content:
            content.seek(-1, os.SEEK_END)
            return content.read(1) != b"\n"
    except OSError:  # missing, or empty
        return False
