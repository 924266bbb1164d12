"""Runs `python -m impasto ...` commands of a few seconds, whose output a page waits for.

Commands that take longer or write files are tasks (`tasks.py`). The server itself imports neither
torch nor image libraries.
"""

from __future__ import annotations

import asyncio
import functools
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from impasto.errors import RunError
from impasto.parsing import parse_json
from impasto.runs.processes import SAFELY
from impasto.runs.tasks import TASK

PATIENCE_S = 600.0
"""Seconds after which a command is killed, unless its page sets another limit."""

_Given = TypeVar("_Given")

_TOLD = 2000
_AT_ONCE = threading.Semaphore(3)
"""Limits the commands that run at a time, since each takes tens of MB, and some a CPU core."""


_WAITING = ThreadPoolExecutor(16, thread_name_prefix="verbs")
"""Threads of requests that wait for a command, so that other requests are not blocked."""


async def in_own_thread(work: Callable[..., _Given], *arguments: Any) -> _Given:
    """Call a function that may wait for a command (`run_verb`) in a separate thread.

    Args:
        work: The function.
        arguments: The arguments of the call.

    Returns:
        The result of the function.
    """
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_WAITING, functools.partial(work, *arguments))


def run_verb(
    arguments: Sequence[str | Path], folder: Path | None = None, patience_s: float = PATIENCE_S
) -> str:
    """Run an `impasto` command to its end, and return its standard output.

    Args:
        arguments: The verb and its arguments. No shell is involved, so names may contain any
            characters.
        folder: The working directory, from which relative paths are resolved.
        patience_s: Seconds after which it is killed.

    Raises:
        RunError: The command cannot be started, takes too long, or failed, with its message.
    """
    environment = {name: value for name, value in os.environ.items() if name != TASK}
    try:
        with _AT_ONCE:
            done = subprocess.run(
                [sys.executable, *SAFELY, "-m", "impasto", *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=patience_s,
                cwd=folder,
                env={**environment, "PYTHONUTF8": "1"},
                check=False,
            )
    except subprocess.TimeoutExpired:
        raise RunError(
            f"This takes longer than {patience_s:.0f} s and was stopped. Choose fewer images, or "
            f"use the command line."
        ) from None
    except (OSError, ValueError) as error:
        raise RunError(f"The command could not be started: {error}.") from error
    if done.returncode:
        printed = done.stderr.decode("utf-8", errors="replace").strip()
        message = f"\n{printed}".rpartition("\nError: ")[2].strip()[-_TOLD:]
        raise RunError(message or f"The command ended with exit code {done.returncode}.")
    return done.stdout.decode("utf-8", errors="replace")


def ask_verb(
    arguments: Sequence[str | Path], folder: Path | None = None, patience_s: float = PATIENCE_S
) -> Any:
    """Run a command as `run_verb` does, and return its output, parsed as JSON.

    Raises:
        RunError: As for `run_verb`, or if the output is not valid JSON.
    """
    try:
        return parse_json(run_verb(arguments, folder, patience_s), halves=True)
    except ValueError as error:
        raise RunError(f"The command did not answer as expected: {error}.") from error
