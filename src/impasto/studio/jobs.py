"""Processes that the studio starts: `python -m impasto ...`, which live on when it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from impasto import files
from impasto.errors import RunError

TERMINAL_LOG = "terminal.log"
"""What a process that the studio started for a run has printed, in the run's directory."""

_TOLD_BYTES = 4000


class Jobs:
    """Starts commands on runs, one for each, and knows what became of its own."""

    def __init__(self) -> None:
        self._started: dict[Path, subprocess.Popen[bytes]] = {}

    def start(self, words: Sequence[str | Path], run: Path, folder: str = "") -> None:
        """Start `impasto` with some words in a session of its own.

        No shell takes part, so names may hold anything.

        Args:
            words: The verb and its arguments.
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
        apart = {"creationflags": _APART} if os.name == "nt" else {"start_new_session": True}
        with files.reported(log), log.open("ab") as output:
            self._started[run] = subprocess.Popen(
                [sys.executable, "-m", "impasto", *map(str, words)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder if folder and Path(folder).is_dir() else None,
                env={**os.environ, "PYTHONUTF8": "1"},
                **apart,
            )

    def is_starting(self, run: Path) -> bool:
        """Whether a process that was started for a run has not ended."""
        job = self._started.get(run)
        return job is not None and job.poll() is None

    def failure_of(self, run: Path) -> str:
        """The last that a process for a run has printed, if it ended with an error; else empty."""
        job = self._started.get(run)
        if job is None or job.poll() in (None, 0):
            return ""
        try:
            with (run / TERMINAL_LOG).open("rb") as log:
                log.seek(max(0, (run / TERMINAL_LOG).stat().st_size - _TOLD_BYTES))
                lines = log.read().decode("utf-8", errors="replace").splitlines()
        except OSError:
            return ""
        return "\n".join(lines[-20:])


_APART = getattr(subprocess, "CREATE_NO_WINDOW", 0) | getattr(
    subprocess, "CREATE_NEW_PROCESS_GROUP", 0
)
