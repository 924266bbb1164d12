"""Plans of drafts, each made by a process of `impasto plan-worker`; only the newest one counts.

Most of the time is spent loading PyTorch and its libraries, so a process that has loaded them is
kept ready for the next plan. It is started only when the previous plan has ended, since a plan
measures the speed of the machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from impasto import files
from impasto.errors import StorageError
from impasto.runs.events import read_events, stage_text
from impasto.runs.processes import start_apart
from impasto.studio.drafts import Draft

WORKER = "plan-worker"
_MOST_BYTES = 4 << 20


@dataclass(frozen=True)
class PlanState:
    """The state of a plan.

    Attributes:
        is_running: Whether it is being made.
        stage: Description of the current stage; empty if it is unknown.
        result: The output of `impasto train --plan --json`; empty if there is none yet.
        failure: The text that was printed instead of a result.
    """

    is_running: bool = False
    stage: str = ""
    result: dict[str, Any] = field(default_factory=dict)
    failure: str = ""


class Plans:
    """Makes plans of drafts: for each draft one at a time, of its newest settings.

    Args:
        folder: The folder for the output of processes that have no draft to plan yet.
        keeps_ready: Whether a process is kept ready for the next plan, which takes half a GiB of
            RAM; it ends by itself if nothing is planned for some minutes.
    """

    def __init__(self, folder: Path, *, keeps_ready: bool = True) -> None:
        self._log = folder / f"{WORKER}.log"
        self._keeps_ready = keeps_ready
        self._ready: subprocess.Popen[bytes] | None = None
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._measuring: set[str] = set()
        self._changing = threading.RLock()  # requests arrive in threads, in any order

    def prepare(self) -> None:
        """Start a process that loads the libraries for the next plan, unless one is ready.

        If it cannot be started because the disk is full, the next plan starts its own.
        """
        with self._changing:
            if not self._keeps_ready or (self._ready is not None and self._ready.poll() is None):
                return
            self.rest()  # it has ended, since nothing was planned for long
            with contextlib.suppress(StorageError):
                self._ready = self._started()

    def rest(self) -> None:
        """Stop the process that is kept ready, to free its memory."""
        with self._changing:
            process, self._ready = self._ready, None
            if process is None:
                return
            if process.poll() is None:
                _end(process)
            elif process.stdin is not None:
                process.stdin.close()

    def ask_for(self, draft: Draft, settings: str) -> None:
        """Plan the settings of a draft, unless they are the ones planned last.

        A process that plans older settings of the draft is stopped without a result. One that is
        still loading libraries, and so has not read the older settings, plans the new ones.

        Args:
            draft: The draft of the settings.
            settings: The text of a settings file.

        Raises:
            StorageError: The folder cannot be written.
        """
        with self._changing:
            self._ask_for(draft, settings)

    def _ask_for(self, draft: Draft, settings: str) -> None:
        is_same = _text_of(draft.settings_file) == settings and draft.plan_log.exists()
        if is_same and (self._is_running(draft) or self.state_of(draft).result):
            return
        self._running = {name: one for name, one in self._running.items() if one.poll() is None}
        if self._is_running(draft) and not draft.plan_log.exists():
            files.write_text(draft.settings_file, settings, durable=False)
            if (
                not draft.plan_log.exists()
            ):  # the process creates the log, and then reads the settings
                return
        self.forget(draft)
        files.write_text(draft.settings_file, settings, durable=False)
        self._running[draft.name] = self._asked(draft)
        self._measuring.add(draft.name)

    def _asked(self, draft: Draft) -> subprocess.Popen[bytes]:
        """Send a request to plan a draft to the ready process, or to a new one, and return it."""
        asked = {"settings": draft.settings_file, "log": draft.plan_log, "task": draft.path}
        line = json.dumps({name: str(path.absolute()) for name, path in asked.items()}) + "\n"
        ready, self._ready = self._ready, None
        if ready is not None:
            with contextlib.suppress(
                OSError
            ):  # it has just ended, since nothing was planned for long
                return _told(ready, line)
        return _told(self._started(), line)

    def _started(self) -> subprocess.Popen[bytes]:
        with contextlib.suppress(OSError):
            self._log.unlink(missing_ok=True)
        return start_apart([WORKER], self._log, listens=True)

    def forget(self, draft: Draft) -> None:
        """Stop the process that plans a draft, if any, and remove the files of its plan."""
        with self._changing:
            process = self._running.pop(draft.name, None)
            if process is not None and process.poll() is None:
                _end(process)
            for file in (draft.plan_log, draft.events_file):
                with contextlib.suppress(OSError):
                    file.unlink(missing_ok=True)

    def state_of(self, draft: Draft) -> PlanState:
        """Return the state of the newest plan of a draft."""
        if self._is_running(draft):
            return PlanState(is_running=True, stage=_stage_of(draft))
        printed = _text_of(draft.plan_log)
        if draft.name in self._running and not draft.plan_log.exists():  # it ended while loading
            printed = _text_of(self._log) or "The process that makes the plan was stopped."
        if draft.name in self._measuring:  # it timed this machine, which had to be idle
            self._measuring.discard(draft.name)
            self.prepare()
        begin = 0 if printed.startswith("{\n") else printed.find("\n{\n") + 1
        try:
            result, _ = json.JSONDecoder().raw_decode(printed, begin)
        except ValueError:
            return PlanState(failure=printed[-4000:].strip())
        return PlanState(result=result if isinstance(result, dict) else {})

    def _is_running(self, draft: Draft) -> bool:
        process = self._running.get(draft.name)
        return process is not None and process.poll() is None


def _told(process: subprocess.Popen[bytes], line: str) -> subprocess.Popen[bytes]:
    """Write a line to a process that waits for one, and return the process.

    Raises:
        OSError: The process has ended.
    """
    if process.stdin is not None:
        with process.stdin as stdin:
            stdin.write(line.encode("utf-8"))
    return process


def _stage_of(draft: Draft) -> str:
    if not draft.plan_log.exists():
        return "Loading PyTorch and diffusers"
    at_work: dict[str, Mapping[str, Any]] = {}  # stages can be nested
    for _, event in read_events(draft.events_file):
        if event["kind"] == "stage":
            at_work.pop(str(event.get("text")), None)
            if not event.get("ended"):
                at_work[str(event.get("text"))] = event
    return stage_text([*at_work.values()][-1]) if at_work else ""


def _text_of(file: Path) -> str:
    try:
        with file.open("rb") as content:
            text = content.read(_MOST_BYTES).decode("utf-8", "replace")
            return text.replace("\r\n", "\n")  # line ends of Windows
    except OSError:
        return ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its children (on Windows, only the process)."""
    if process.stdin is not None:
        process.stdin.close()
    with contextlib.suppress(OSError):
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
