"""Processes that outlive the program that starts them: `python -m impasto ...` in a new session."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from impasto import storage_errors

SAFELY = ("-P",)
"""Python's option that prevents imports from the folder in which a process is started: it may be
from an untrusted source, with a `click.py` in it."""

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
    """Start `impasto` with some arguments, without a shell, so that names may contain anything.

    Args:
        arguments: The command and its arguments.
        log: The file to which its output is appended.
        folder: Its current folder, at which relative paths start.
        environment: Environment variables in addition to those of this process.
        listens: Whether its `stdin` can be written to.

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
    """Tell a process that was started with `start_apart` to stop, as Ctrl-C does."""
    if sys.platform != "win32":  # on Windows it has no console to receive a signal
        os.kill(pid, signal.SIGTERM)
