"""`status.json` of a run directory: the phase and progress of a run, updated while it is alive.

A file alone cannot record that its writer was killed. So it is read together with the lock of the
directory (`locks.py`): a run whose status is training, and whose directory no living process holds,
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
from impasto.lock_file import LockHolder
from impasto.owners import current_process
from impasto.parsing import printable, read_object
from impasto.progress import counted, duration_text
from impasto.runs.given_code import how_to_resume

Phase = Literal["preparing", "training", "finished", "stopped", "failed"]
State = Literal["preparing", "training", "finished", "stopped", "failed", "killed", "unknown"]
"""The phases, and the states that a run cannot record itself."""

BEAT_S = 5.0
"""Seconds between two updates of `status.json` while a run is alive."""

_KEPT = ("step", "total_steps", "saved_step", "loss", "images_per_s", "folder")

_OF_END = ("model", "merged_loss", "steps_per_epoch")
"""Entries about a finished run's model, which stay true while the run is extended."""

_GOING = ("preparing", "training")

_OLD_PHASES = {"interrupted": "stopped"}
"""Name of a phase in files of former versions -> its present name."""


class StatusWriter:
    """Writes `status.json`: at once when the phase changes, and as a heartbeat every few seconds.

    Values that change with every step are only stored (`note`), which costs nothing, and are
    written with the next heartbeat. Used as a context; heartbeats end with it. For a run that had
    finished before, the status retains the step (`finished_step`) and the model of that.

    Args:
        file: The file.
        every_s: Seconds between heartbeats.
    """

    def __init__(self, file: Path, every_s: float = BEAT_S) -> None:
        self._file, self._every_s = file, every_s
        self._lock = threading.Lock()  # of the stored entries: held only briefly
        self._writing = threading.Lock()  # of the file: held as long as the disk takes
        self._ended = threading.Event()
        self._content: dict[str, Any] = {"folder": str(Path.cwd())}
        self._earlier_end = _earlier_end(file)
        self._is_unwritten = False
        self._process = {
            "pid": os.getpid(),
            "process": current_process().token,
            "host": socket.gethostname(),
            "started_at": time.time(),
        }

    def __enter__(self) -> StatusWriter:
        threading.Thread(target=self._beat, name="status", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        with self._writing:  # wait for a heartbeat that is being written
            if self._is_unwritten:
                self._write(durable=True)

    @property
    def is_finished(self) -> bool:
        """Whether this process has written that the run is finished."""
        with self._lock:
            return self._content.get("phase") == "finished"

    def write(self, phase: Phase, **details: Any) -> None:
        """Start a phase; the numbers of training and the folder are kept from the previous one.

        A file that cannot be written now is written with the next heartbeat, or at the end:
        training does not end because of a file that only informs. A full disk is reported where it
        matters.
        """
        with self._writing:
            with self._lock:
                kept = {name: self._content[name] for name in _KEPT if name in self._content}
                earlier = {} if phase == "finished" else self._earlier_end
                self._content = {"phase": phase, **earlier, **kept, **details}
            self._write(durable=True)

    def note(self, **details: Any) -> None:
        """Store entries to be written with the next heartbeat; None removes an entry."""
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
        """Write the file, unless no phase has started or the directory is gone."""
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
    """The true state of a run: its status, and whether its process is alive.

    Attributes:
        state: The state, one word.
        status: The content of `status.json`; empty if it is missing or damaged.
        holder: The living process that holds the directory.
        saved_step: The step of its newest training state; 0 if it has none.
        resumption: How a resumption ended that completed no further step, `stopped`, `failed` or
            `killed`: the run is `finished`, as before. None if there was none.
        folder: Its directory on this machine, which records the parts given in code; None if
            unknown.
    """

    state: State
    status: Mapping[str, Any]
    holder: LockHolder | None
    saved_step: int
    resumption: State | None = None
    folder: Path | None = None

    @property
    def is_alive(self) -> bool:
        """Whether a process is working on the run."""
        return self.holder is not None

    @property
    def finished_step(self) -> int | None:
        """The step at which the run finished before it was extended; None if it never did."""
        step = self.status.get("finished_step")
        return None if step is None else int(step)

    @property
    def can_go_on(self) -> bool:
        """Whether no process works on the run and it has not reached its requested end."""
        ended = self.state in ("killed", "stopped", "failed")
        return not self.is_alive and (ended or self.resumption is not None)

    @property
    def step(self) -> int:
        """The number of completed optimizer steps, as far as the run recorded it."""
        if self.resumption is not None and self.finished_step is not None:
            return self.finished_step
        return int(self.status.get("step", self.saved_step))

    @property
    def total_steps(self) -> int | None:
        """The optimizer steps of the whole run; None until that is known."""
        total = self.status.get("total_steps")
        if self.resumption is not None:
            return self.finished_step
        return None if total is None else int(total)

    def details(self) -> list[str]:
        """Return the most important figures, as far as known: time left, speed, loss."""
        status, found = self.status, []
        if self.is_alive and "seconds_left" in status:
            found.append(f"{duration_text(status['seconds_left'])} left")
        if self.is_alive and "images_per_s" in status:
            found.append(f"{status['images_per_s']:.3g} images/s")
        if "loss" in status:
            found.append(f"loss {status['loss']:.4f}")
        return found

    def sentence(self, path: Path | str) -> str:
        """Return the state in one to three sentences, with what to do if something must be done."""
        start, message = f"This run {_SENTENCES[self.state]}", str(self.status.get("message", ""))
        if self.total_steps is not None and (not message or self.resumption is not None):
            about = "about " if self.state == "killed" else ""
            start += f": {about}{self.step} of {counted(self.total_steps, 'steps')}"
        said = [f"{start}.", self._resumption_text(), message]
        if "killed" in (self.state, self.resumption):
            said.append(f"{kept_text(self.saved_step)}: {how_to_resume(self.folder, path)}")
        return " ".join(filter(None, said))

    def _resumption_text(self) -> str:
        """Return how the run stood before it was extended; empty if it was not."""
        if self.resumption is not None:
            return f"It was resumed later, which {_RESUMPTIONS[self.resumption]} before a step."
        if self.finished_step is None:
            return ""
        return f"It had finished at step {self.finished_step} and was resumed, to be made longer."


def kept_text(saved_step: int) -> str:
    """Return what is saved of a run that ended early, and how to continue; a command follows.

    Args:
        saved_step: The step of its newest training state; 0 if it has none.
    """
    if saved_step:
        return f"The state of step {saved_step} is kept, and nothing after it. Continue with"
    return "No state was saved yet. Begin again from the start with"


_SENTENCES: dict[State, str] = {
    "preparing": "is being prepared",
    "training": "is training",
    "finished": "is finished",
    "stopped": "was stopped",
    "failed": "ended with an error",
    "killed": "was killed: its process is gone and left no message",
    "unknown": "is of unknown state",
}


_RESUMPTIONS: dict[State, str] = {
    "stopped": "was stopped",
    "failed": "ended with an error",
    "killed": "was killed",
}


def state_of(
    status: Mapping[str, Any],
    holder: LockHolder | None,
    saved_step: int,
    folder: Path | None = None,
) -> RunState:
    """Return the state of a run from its status and whether its process is alive."""
    phase = _OLD_PHASES.get(str(status.get("phase")), status.get("phase"))
    state: State = phase if phase in _SENTENCES else "unknown"
    if holder is None and phase in _GOING:
        state = "killed"
    if holder is None and state in _RESUMPTIONS and _is_as_it_finished(status):
        return RunState("finished", status, None, saved_step, state, folder)
    if holder is not None and "process" in status and not _is_by(holder, status):
        state = "preparing"  # it was just resumed, and has not written its status yet
    return RunState(state, status, holder, saved_step, folder=folder)


def _is_as_it_finished(status: Mapping[str, Any]) -> bool:
    """Return whether a run had finished, and has not started further steps since."""
    finished, total = status.get("finished_step"), status.get("total_steps")
    return finished is not None and (total is None or total <= finished)


def finished_step_of(status: Mapping[str, Any]) -> int | None:
    """Return the step at which a run finished, now or before it was extended; None if never."""
    is_finished = status.get("phase") == "finished"
    step = status.get("total_steps" if is_finished else "finished_step")
    return step if isinstance(step, int) else None


def _earlier_end(file: Path) -> dict[str, Any]:
    """Return the recorded outcome of an earlier finish of a run; empty if it never finished."""
    said = read_object(file) or {}
    step = finished_step_of(said)
    if step is None:
        return {}
    return {"finished_step": step, **{name: said[name] for name in _OF_END if name in said}}


def _is_by(holder: LockHolder, status: Mapping[str, Any]) -> bool:
    return holder.owner is not None and holder.owner.token == status.get("process")
