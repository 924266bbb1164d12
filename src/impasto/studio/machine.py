"""What the machine has, as `impasto doctor` finds out in a process of its own: it needs torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from impasto import files

NEW_FOR_S = 600.0
"""Seconds for which what was found is shown before it is looked at again."""

_PATIENCE_S = 120.0


class Machine:
    """Remembers what was found in a file.

    Args:
        file: Where.
        folder: The folder whose disk is looked at.
    """

    def __init__(self, file: Path, folder: Path) -> None:
        self._file, self._folder = file, folder

    def remembered(self) -> Mapping[str, Any] | None:
        """What was found a short time ago; None where that was longer ago, or never."""
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))
            is_new = 0 <= time.time() - self._file.stat().st_mtime < NEW_FOR_S
        except (OSError, ValueError):
            return None
        return found if is_new and isinstance(found, dict) else None

    def examine(self) -> Mapping[str, Any]:
        """Look at the machine; takes seconds.

        Raises:
            OSError: The process cannot be started, or the file not be written.
            ValueError: It found nothing out: what it said.
        """
        done = subprocess.run(
            [sys.executable, "-m", "impasto", "doctor", "--json"],
            stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE_S, check=False,
            cwd=self._folder, env={**os.environ, "PYTHONUTF8": "1"},
        )  # fmt: skip
        if done.returncode:
            raise ValueError(done.stderr.decode("utf-8", errors="replace").strip()[-500:])
        found = json.loads(done.stdout)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(self._file, found, durable=False)
        return dict(found)
