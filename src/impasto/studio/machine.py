"""Facts about the machine from `impasto doctor`, in a separate process since it loads torch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from impasto import files
from impasto.parsing import read_object
from impasto.studio.verbs import ask_verb

NEW_FOR_S = 600.0
"""Seconds for which the stored facts are shown before the machine is examined again."""

_PATIENCE_S = 120.0


class Machine:
    """Examines the machine, and stores the facts in a file.

    Args:
        file: The file of the facts.
        folder: The folder whose disk is examined.
    """

    def __init__(self, file: Path, folder: Path) -> None:
        self._file, self._folder = file, folder

    def remembered(self) -> Mapping[str, Any] | None:
        """Return the stored facts, or None if they are older than `NEW_FOR_S` or missing."""
        try:
            is_new = 0 <= time.time() - self._file.stat().st_mtime < NEW_FOR_S
        except OSError:
            return None
        return read_object(self._file) if is_new else None

    def has_no_gpu(self) -> bool:
        """Return whether the stored facts, of any age, say that PyTorch can use no GPU."""
        facts = (read_object(self._file) or {}).get("facts")
        return isinstance(facts, Mapping) and facts.get("gpus") == []

    def examine(self) -> Mapping[str, Any]:
        """Examine the machine, which takes seconds, and store the facts.

        Raises:
            RunError: `impasto doctor` failed or took too long; the message has its output.
            StorageError: The file cannot be written.
        """
        found: dict[str, Any] = ask_verb(["doctor", "--json"], self._folder, _PATIENCE_S)
        files.write_json(self._file, found, durable=False)
        return found
