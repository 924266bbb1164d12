"""Processes that the studio starts: `python -m impasto ...`, which live on when it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from impasto import files

TERMINAL_LOG = "terminal.log"
"""What a process that the studio started for a run has printed, in the run's directory."""


class Jobs:
    """Starts commands, and clears away those of its own that have ended."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, words: Sequence[str | Path], log: Path) -> int:
        """Start `impasto` with some words in a session of its own; returns its process number.

        No shell takes part, so names may hold anything.

        Args:
            words: The verb and its arguments.
            log: What it prints is added to this file.

        Raises:
            StorageError: The file cannot be written.
        """
        self._started = [job for job in self._started if job.poll() is None]
        apart = {"creationflags": _DETACHED} if os.name == "nt" else {"start_new_session": True}
        with files.reported(log), log.open("ab") as output:
            job = subprocess.Popen(
                [sys.executable, "-m", "impasto", *map(str, words)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUTF8": "1"},
                **apart,
            )
        self._started.append(job)
        return job.pid


_DETACHED = getattr(subprocess, "DETACHED_PROCESS", 0) | getattr(
    subprocess, "CREATE_NEW_PROCESS_GROUP", 0
)
