"""Starts training processes on runs, which continue when the studio ends."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from impasto.errors import RunError
from impasto.runs.lines import read_end
from impasto.runs.processes import start_apart

TERMINAL_LOG = "terminal.log"
"""File in a run directory for the output of processes that the studio started for the run."""

_TOLD_BYTES = 4000

STOPPED = (130, 143)
"""Exit codes of a command that stopped on request (`errors.py`)."""


class RunProcesses:
    """Starts commands on runs, one at a time per run, and reports the state of those it started."""

    def __init__(self) -> None:
        self._started: dict[Path, subprocess.Popen[bytes]] = {}

    def start(self, arguments: Sequence[str | Path], run: Path, folder: str = "") -> None:
        """Start an `impasto` command in a separate session.

        No shell is involved, so names may contain any characters.

        Args:
            arguments: The verb and its arguments.
            run: The run directory that it works on; its output is appended to `terminal.log` there.
            folder: The working directory, from which relative paths in the run's settings are
                resolved. If it no longer exists, that of the studio is used.

        Raises:
            RunError: The previous process of the run is still running, or `terminal.log` is a link.
            StorageError: The file cannot be written.
        """
        if self.is_starting(run):
            raise RunError("This run is already being started.")
        log = run / TERMINAL_LOG
        if log.is_symlink():
            raise RunError(f"{log} is a link, which is not written to. Remove it.")
        where = Path(folder) if folder and Path(folder).is_dir() else None
        self._started[run] = start_apart(arguments, log, where)

    def is_starting(self, run: Path) -> bool:
        """Return whether a process that was started for a run is still running."""
        process = self._started.get(run)
        return process is not None and process.poll() is None

    def pid_of(self, run: Path) -> int | None:
        """Return the id of the last process started for a run, or None if there was none."""
        process = self._started.get(run)
        return None if process is None else process.pid

    def failure_of(self, run: Path) -> str:
        """Return the last output of a run's process if it failed, or else an empty text."""
        process = self._started.get(run)
        if process is None or process.poll() in (None, 0, *STOPPED):
            return ""
        return "\n".join(read_end(run / TERMINAL_LOG, _TOLD_BYTES).splitlines()[-20:])
