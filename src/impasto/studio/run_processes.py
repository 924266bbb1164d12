"""Processes that the studio starts on runs: they train, and live on when it ends."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from impasto.errors import RunError
from impasto.runs.lines import read_end
from impasto.runs.processes import start_apart

TERMINAL_LOG = "terminal.log"
"""What a process that the studio started for a run has printed, in the run's directory."""

_TOLD_BYTES = 4000

STOPPED = (130, 143)
"""Exit codes of a command that was asked to stop, and did (`errors.py`)."""


class RunProcesses:
    """Starts commands on runs, one for each, and knows what became of its own."""

    def __init__(self) -> None:
        self._started: dict[Path, subprocess.Popen[bytes]] = {}

    def start(self, arguments: Sequence[str | Path], run: Path, folder: str = "") -> None:
        """Start `impasto` with some words in a session of its own.

        No shell takes part, so names may hold anything.

        Args:
            arguments: The verb and its arguments.
            run: The run directory that it works on; what it prints is added to its `terminal.log`.
            folder: Where it is started: relative paths in the run's settings begin there. Where it
                is not there any more, it is started where the studio was.

        Raises:
            RunError: The one before is still at work, or `terminal.log` is a link.
            StorageError: The file cannot be written.
        """
        if self.is_starting(run):
            raise RunError("It is being started already.")
        log = run / TERMINAL_LOG
        if log.is_symlink():
            raise RunError(f"{log} is a link, which is not written to. Remove it.")
        where = Path(folder) if folder and Path(folder).is_dir() else None
        self._started[run] = start_apart(arguments, log, where)

    def is_starting(self, run: Path) -> bool:
        """Whether a process that was started for a run has not ended."""
        process = self._started.get(run)
        return process is not None and process.poll() is None

    def pid_of(self, run: Path) -> int | None:
        """The process that was started for a run last; None where this studio has started none."""
        process = self._started.get(run)
        return None if process is None else process.pid

    def failure_of(self, run: Path) -> str:
        """The last that a process for a run has printed, if it ended with an error; else empty."""
        process = self._started.get(run)
        if process is None or process.poll() in (None, 0, *STOPPED):
            return ""
        return "\n".join(read_end(run / TERMINAL_LOG, _TOLD_BYTES).splitlines()[-20:])
