"""Commands whose answer a page waits for: `python -m impasto ...`, a second or a few long.

What takes longer, or writes, is a task (`tasks.py`). The server itself imports neither torch nor
what works on images.
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
"""Seconds after which a command is ended, if its page does not say otherwise."""

_Given = TypeVar("_Given")

_TOLD = 2000
_AT_ONCE = threading.Semaphore(3)
"""So many commands run at a time: each takes tens of MB, some a core. Others wait their turn."""


_WAITING = ThreadPoolExecutor(16, thread_name_prefix="verbs")
"""The threads of requests that wait for a command, so that those of all other requests are free."""


async def in_own_thread(work: Callable[..., _Given], *arguments: Any) -> _Given:
    """What a function gives that may wait for a command: `run_verb`.

    Args:
        work: The function.
        arguments: What it is called with.
    """
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_WAITING, functools.partial(work, *arguments))


def run_verb(
    arguments: Sequence[str | Path], folder: Path | None = None, patience_s: float = PATIENCE_S
) -> str:
    """Run `impasto` with some words to its end, and return what it printed.

    Args:
        arguments: The verb and its arguments. No shell takes part, so names may hold anything.
        folder: Where it runs: its relative paths begin there.
        patience_s: Seconds after which it is ended.

    Raises:
        RunError: It cannot be started, ended with an error, with its words, or takes too long.
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
            f"It takes longer than {patience_s:.0f} s and was ended. Choose fewer images, or use "
            f"the command line."
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
    """Run a command, as `run_verb` does, and return the JSON that it prints.

    Raises:
        RunError: As for `run_verb`; or what it printed is no JSON.
    """
    try:
        return parse_json(run_verb(arguments, folder, patience_s), halves=True)
    except ValueError as error:
        raise RunError(f"The command did not answer as expected: {error}.") from error
