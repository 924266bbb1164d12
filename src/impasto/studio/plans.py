"""Plans of drafts: `impasto train --plan --json` as a process, of which only the newest counts."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from impasto import files
from impasto.runs.processes import start_apart
from impasto.studio.drafts import Draft

_MOST_BYTES = 4 << 20


@dataclass(frozen=True)
class PlanState:
    """How a plan stands.

    Attributes:
        is_running: Whether it is being made.
        result: What `impasto train --plan --json` printed; empty where there is nothing yet.
        failure: What it printed in place of that.
    """

    is_running: bool = False
    result: dict[str, Any] = field(default_factory=dict)
    failure: str = ""


class Plans:
    """Makes plans of drafts: one at a time for each, of the newest settings."""

    def __init__(self) -> None:
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._changing = threading.RLock()  # requests come in threads, and in no order

    def ask_for(self, draft: Draft, settings: str) -> None:
        """Plan some settings, unless they are those that were planned last.

        A process that plans older settings of the draft is stopped: it writes nothing.

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
        self.forget(draft)
        files.write_text(draft.settings_file, settings, durable=False)
        words: list[str | Path] = ["train", draft.settings_file, "--plan", "--json"]
        self._running[draft.name] = start_apart(words, draft.plan_log)

    def forget(self, draft: Draft) -> None:
        """Stop a process that plans, and remove what came of one."""
        with self._changing:
            process = self._running.pop(draft.name, None)
            if process is not None and process.poll() is None:
                _end(process)
            with contextlib.suppress(OSError):
                draft.plan_log.unlink(missing_ok=True)

    def state_of(self, draft: Draft) -> PlanState:
        """How the newest plan of a draft stands."""
        if self._is_running(draft):
            return PlanState(is_running=True)
        printed = _text_of(draft.plan_log)
        begin = 0 if printed.startswith("{\n") else printed.find("\n{\n") + 1
        try:
            result, _ = json.JSONDecoder().raw_decode(printed, begin)
        except ValueError:
            return PlanState(failure=printed[-4000:].strip())
        return PlanState(result=result if isinstance(result, dict) else {})

    def _is_running(self, draft: Draft) -> bool:
        process = self._running.get(draft.name)
        return process is not None and process.poll() is None


def _text_of(file: Path) -> str:
    try:
        with file.open("rb") as content:
            return content.read(_MOST_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it has started."""
    with contextlib.suppress(OSError):
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
