"""Commands whose answer a page waits for: `python -m impasto ...`, a second or a few long.

What takes longer, or writes, is a task (`tasks.py`). The server itself imports neither torch nor
what works on images.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from impasto.errors import RunError
from impasto.runs.tasks import TASK

PATIENCE_S = 600.0
_TOLD = 2000


def ask_verb(words: Sequence[str | Path]) -> Any:
    """Run a command and return the JSON that it prints.

    Raises:
        RunError: It ended with an error, with its words; or it did not end in ten minutes.
    """
    environment = {name: value for name, value in os.environ.items() if name != TASK}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "impasto", *map(str, words)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE_S,
            env={**environment, "PYTHONUTF8": "1"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RunError(
            f"It takes longer than {PATIENCE_S:.0f} s and was ended; nothing was changed. Choose "
            f"fewer images, or use the command line."
        ) from None
    if done.returncode:
        said = done.stderr.decode("utf-8", errors="replace").strip()
        raise RunError(said.rpartition("Error: ")[2][-_TOLD:] or "The command failed.")
    try:
        return json.loads(done.stdout)
    except ValueError as error:
        raise RunError(f"The command did not answer as expected: {error}.") from error
