"""What the machine has, as `impasto doctor` finds out in a process of its own: it needs torch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from impasto import files
from impasto.parsing import read_object
from impasto.studio.verbs import ask_verb

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
            is_new = 0 <= time.time() - self._file.stat().st_mtime < NEW_FOR_S
        except OSError:
            return None
        return read_object(self._file) if is_new else None

    def has_no_gpu(self) -> bool:
        """Whether the last look, however long ago, found no GPU that PyTorch can use."""
        facts = (read_object(self._file) or {}).get("facts")
        return isinstance(facts, Mapping) and facts.get("gpus") == []

    def examine(self) -> Mapping[str, Any]:
        """Look at the machine; takes seconds.

        Raises:
            RunError: It found nothing out: with what it said, or that it took too long.
            StorageError: The file cannot be written.
        """
        found: dict[str, Any] = ask_verb(["doctor", "--json"], self._folder, _PATIENCE_S)
        files.write_json(self._file, found, durable=False)
        return found
