"""`status.json` of a run directory: what a run is doing, kept true while its process lives.

A file alone cannot say that its writer was killed. So it is read together with the lock of the
directory (`locks.py`): a run that says that it trains, and whose directory no living process holds,
was killed.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from impasto import files
from impasto.errors import StorageError
from impasto.invocation import command
from impasto.lock_file import LockHolder
from impasto.owners import current_process
from impasto.parsing import printable
from impasto.progress import counted, duration_words

Phase = Literal["preparing", "training", "finished", "stopped", "failed"]
State = Literal["preparing", "training", "finished", "stopped", "failed", "killed", "unknown"]
"""The phases, and what a phase cannot say of itself."""

BEAT_S = 5.0
"""Seconds between two writings of `status.json` while a run lives."""

_KEPT = ("step", "total_steps", "saved_step", "loss", "images_per_s")

_GOING = ("preparing", "training")

_OLD_PHASES = {"interrupted": "stopped"}
"""What files of former versions call a phase -> the phase."""


class StatusWriter:
    """Writes `status.json`: at once when the phase changes, and as a heartbeat every few seconds.

    What changes with every step is only noted (`note`), which costs nothing, and goes out with the
    next beat. Used as a context, whose end is the end of the beats.

    Args:
        file: The file.
        every_s: Seconds between beats.
    """

    def __init__(self, file: Path, every_s: float = BEAT_S) -> None:
        self._file, self._every_s = file, every_s
        self._lock = threading.Lock()  # of what is noted: held for no time
        self._writing = threading.Lock()  # of the file: held as long as the disk takes
        self._ended = threading.Event()
        self._content: dict[str, Any] = {}
        self._is_unwritten = False
        self._process = {
            "pid": os.getpid(),
            "process": current_process().token,
            "host": socket.gethostname(),
            "started_at": time.time(),
            "folder": str(Path.cwd()),
        }

    def __enter__(self) -> StatusWriter:
        threading.Thread(target=self._beat, name="status", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        with self._writing:  # a beat that is being written is let finish
            if self._is_unwritten:
                self._write(durable=True)

    def write(self, phase: Phase, **details: Any) -> None:
        """Begin a phase; of the one before, the numbers of training are kept.

        A file that cannot be written just now is written with the next beat, or at the end: no
        training ends because of what only serves looking. A full disk is met where it matters.
        """
        with self._writing:
            with self._lock:
                kept = {name: self._content[name] for name in _KEPT if name in self._content}
                self._content = {"phase": phase, **kept, **details}
            self._write(durable=True)

    def note(self, **details: Any) -> None:
        """Remember what will be written with the next beat; None removes an entry."""
        with self._lock:
            self._content.update(details)
            self._content = {k: v for k, v in self._content.items() if v is not None}

    def drop(self) -> None:
        """Write nothing more until the next phase: the run is being removed."""
        with self._writing, self._lock:
            self._content = {}

    def _whole(self) -> dict[str, Any]:
        said = {**self._content, "updated_at": time.time(), **self._process}
        return {k: printable(v) if isinstance(v, str) else v for k, v in said.items()}

    def _beat(self) -> None:
        while not self._ended.wait(self._every_s):
            with self._writing:
                if not self._ended.is_set():
                    self._write(durable=self._is_unwritten)

    def _write(self, *, durable: bool) -> None:
        """Write the file, unless nothing has begun or the directory is gone."""
        with self._lock:
            content = self._whole()
        if "phase" not in content or not self._file.parent.is_dir():
            return
        self._is_unwritten = True
        with contextlib.suppress(StorageError):
            files.write_json(self._file, content, durable=durable)
            self._is_unwritten = False


@dataclass(frozen=True)
class RunState:
    """The true state of a run: what its status says, and whether its process lives.

    Attributes:
        state: One word.
        status: What `status.json` says; empty where it is missing or damaged.
        holder: The living process that holds the directory.
        saved_step: The step of its newest training state; 0 if it has none.
    """

    state: State
    status: Mapping[str, Any]
    holder: LockHolder | None
    saved_step: int

    @property
    def is_alive(self) -> bool:
        """Whether a process is working on the run."""
        return self.holder is not None

    @property
    def step(self) -> int:
        """Optimizer steps that are done, as far as the run could say."""
        return int(self.status.get("step", self.saved_step))

    @property
    def total_steps(self) -> int | None:
        """Optimizer steps of the whole run; None until that is known."""
        total = self.status.get("total_steps")
        return None if total is None else int(total)

    def details(self) -> list[str]:
        """What is worth knowing at a glance, as far as it is known: time left, speed, loss."""
        status, found = self.status, []
        if self.is_alive and "seconds_left" in status:
            found.append(f"{duration_words(status['seconds_left'])} left")
        if self.is_alive and "images_per_s" in status:
            found.append(f"{status['images_per_s']:.3g} images/s")
        if "loss" in status:
            found.append(f"loss {status['loss']:.4f}")
        return found

    def sentence(self, path: Path | str) -> str:
        """The state in a sentence or three, with what to do where something is to be done."""
        words, message = f"This run {_SENTENCES[self.state]}", str(self.status.get("message", ""))
        if self.total_steps is not None and not message:
            about = "about " if self.state == "killed" else ""
            words += f": {about}{self.step} of {counted(self.total_steps, 'steps')}"
        said = [f"{words}.", message]
        if self.state == "killed":
            kept = (
                f"The state of step {self.saved_step} is kept"
                if self.saved_step
                else ("It has saved no state")
            )
            said.append(f"{kept}. Continue with: {command('resume', path)}")
        return " ".join(filter(None, said))


_SENTENCES: dict[State, str] = {
    "preparing": "is being prepared",
    "training": "is training",
    "finished": "is finished",
    "stopped": "was stopped",
    "failed": "ended with an error",
    "killed": "was killed: its process is gone and left no message",
    "unknown": "is of unknown state",
}


def state_of(status: Mapping[str, Any], holder: LockHolder | None, saved_step: int) -> RunState:
    """Put together what a run says of itself and whether its process lives."""
    phase = _OLD_PHASES.get(str(status.get("phase")), status.get("phase"))
    state: State = phase if phase in _SENTENCES else "unknown"
    if holder is None and phase in _GOING:
        state = "killed"
    elif holder is not None and "process" in status and not _is_by(holder, status):
        state = "preparing"  # it was resumed just now, and has not said so yet
    return RunState(state, status, holder, saved_step)


def _is_by(holder: LockHolder, status: Mapping[str, Any]) -> bool:
    return holder.owner is not None and holder.owner.token == status.get("process")
