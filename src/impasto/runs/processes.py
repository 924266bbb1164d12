"""Processes that outlive whoever starts them: `python -m impasto ...` in a separate session."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from impasto import storage_errors

SAFELY = ("-P",)
"""Python's option by which no module is imported from the folder that a process is started in: it
may be a stranger's, with a `click.py` in it."""

_APART = getattr(subprocess, "CREATE_NO_WINDOW", 0) | getattr(
    subprocess, "CREATE_NEW_PROCESS_GROUP", 0
)


def start_apart(
    arguments: Sequence[str | Path],
    log: Path,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    *,
    listens: bool = False,
) -> subprocess.Popen[bytes]:
    """Start `impasto` with some words. No shell takes part, so names may hold anything.

    Args:
        arguments: The verb and its arguments.
        log: What it prints is added to this file.
        folder: Where it is started: its relative paths begin there.
        environment: Variables that it has beside those of this process.
        listens: Whether it can be written to, by `stdin`.

    Raises:
        StorageError: The file cannot be written.
    """
    apart = {"creationflags": _APART} if os.name == "nt" else {"start_new_session": True}
    with storage_errors.reported(log), log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, *SAFELY, "-m", "impasto", *map(str, arguments)],
            stdin=subprocess.PIPE if listens else subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, "PYTHONUTF8": "1", **(environment or {})},
            **apart,
        )


def ask_to_stop(pid: int) -> None:
    """Ask a process that was started apart to stop, as Ctrl-C does."""
    if sys.platform != "win32":  # there it has no console that a signal could come through
        os.kill(pid, signal.SIGTERM)
