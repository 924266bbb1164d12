"""Plans of drafts: each a process of `impasto plan-worker`, of which only the newest counts.

Loading PyTorch and its libraries takes longer than all else, so a process that has them is kept
ready for the next plan. It is started when the plan before has ended, which measures how fast the
machine is.
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
    """How a plan stands.

    Attributes:
        is_running: Whether it is being made.
        stage: What is being done for it, in words; empty where that is not known.
        result: What `impasto train --plan --json` printed; empty where there is nothing yet.
        failure: What it printed in place of that.
    """

    is_running: bool = False
    stage: str = ""
    result: dict[str, Any] = field(default_factory=dict)
    failure: str = ""


class Plans:
    """Makes plans of drafts: one at a time for each, of the newest settings.

    Args:
        folder: Where processes write what they print before they have a draft to plan.
        keeps_ready: Whether one is kept ready for the next plan, which takes half a GiB of RAM; it
            ends by itself when nothing was planned for some minutes.
    """

    def __init__(self, folder: Path, *, keeps_ready: bool = True) -> None:
        self._log = folder / f"{WORKER}.log"
        self._keeps_ready = keeps_ready
        self._ready: subprocess.Popen[bytes] | None = None
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._measuring: set[str] = set()
        self._changing = threading.RLock()  # requests come in threads, and in no order

    def prepare(self) -> None:
        """Have a process load what the next plan needs, unless one is ready.

        Where it cannot be started, since the disk is full, the next plan starts its own.
        """
        with self._changing:
            if not self._keeps_ready or (self._ready is not None and self._ready.poll() is None):
                return
            self.rest()  # it has ended, since nothing was planned
            with contextlib.suppress(StorageError):
                self._ready = self._started()

    def rest(self) -> None:
        """End the process that is ready: its memory is needed for something else."""
        with self._changing:
            process, self._ready = self._ready, None
            if process is None:
                return
            if process.poll() is None:
                _end(process)
            elif process.stdin is not None:
                process.stdin.close()

    def ask_for(self, draft: Draft, settings: str) -> None:
        """Plan some settings, unless they are those that were planned last.

        A process that plans older settings of the draft is stopped: it writes nothing. One that has
        not taken them up yet, because it still loads libraries, takes these.

        Args:
            draft: What they belong to.
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
            if not draft.plan_log.exists():  # it makes that, and then reads the settings
                return
        self.forget(draft)
        files.write_text(draft.settings_file, settings, durable=False)
        self._running[draft.name] = self._asked(draft)
        self._measuring.add(draft.name)

    def _asked(self, draft: Draft) -> subprocess.Popen[bytes]:
        """The process that is ready, or a new one, with a request to plan a draft."""
        asked = {"settings": draft.settings_file, "log": draft.plan_log, "task": draft.path}
        line = json.dumps({name: str(path.absolute()) for name, path in asked.items()}) + "\n"
        ready, self._ready = self._ready, None
        if ready is not None:
            with contextlib.suppress(OSError):  # it has just ended, since nothing was planned
                return _told(ready, line)
        return _told(self._started(), line)

    def _started(self) -> subprocess.Popen[bytes]:
        with contextlib.suppress(OSError):
            self._log.unlink(missing_ok=True)
        return start_apart([WORKER], self._log, listens=True)

    def forget(self, draft: Draft) -> None:
        """Stop a process that plans, and remove what came of one."""
        with self._changing:
            process = self._running.pop(draft.name, None)
            if process is not None and process.poll() is None:
                _end(process)
            for file in (draft.plan_log, draft.events_file):
                with contextlib.suppress(OSError):
                    file.unlink(missing_ok=True)

    def state_of(self, draft: Draft) -> PlanState:
        """How the newest plan of a draft stands."""
        if self._is_running(draft):
            return PlanState(is_running=True, stage=_stage_of(draft))
        printed = _text_of(draft.plan_log)
        if draft.name in self._running and not draft.plan_log.exists():  # it has loaded nothing
            printed = _text_of(self._log) or "The process that plans was ended."
        if draft.name in self._measuring:  # it timed this machine, which had to be at rest
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
    """A process that waits for one line, once it has that.

    Raises:
        OSError: It has ended.
    """
    if process.stdin is not None:
        with process.stdin as stdin:
            stdin.write(line.encode("utf-8"))
    return process


def _stage_of(draft: Draft) -> str:
    if not draft.plan_log.exists():
        return "Loading PyTorch and diffusers"
    at_work: dict[str, Mapping[str, Any]] = {}  # a stage may be within another
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
            return text.replace("\r\n", "\n")  # as Windows ends lines
    except OSError:
        return ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it has started."""
    if process.stdin is not None:
        process.stdin.close()
    with contextlib.suppress(OSError):
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
