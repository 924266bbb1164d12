"""The layout of a queue's folder on disk.

0007/                 a job (`queue_jobs.py`)
queue.json            the order of the jobs, and the last number assigned
.changing.lock        the process that is changing the queue
.device-0.lock        the process that works on a device (`queue_devices.py`)

Every change is one rename: a job appears complete, or its record or the order is replaced. A job
that is missing in the order comes last, so a process that is killed between two changes loses
nothing.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from impasto import files, locks, storage_errors, temporary_names
from impasto.lock_file import LockHolder
from impasto.parsing import parse_json, read_text
from impasto.runs.queue_jobs import RECORD, SETTINGS, Job, read_job, record_of

ORDER = "queue.json"
_CHANGING = ".changing.lock"


class QueueFolder:
    """The folder of a queue.

    Args:
        path: The folder, which need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Lock the queue against changes by others; waits until the lock is free.

        Raises:
            StorageError: The folder cannot be created or written.
        """
        with storage_errors.reported(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        with locks.FolderLock(self.path, "changing the queue", _wait, _CHANGING):
            yield

    def jobs(self) -> list[Job]:
        """Return all jobs as they were written, in order."""
        try:
            names = os.listdir(self.path)
        except OSError:
            return []
        numbers = {int(name) for name in names if _is_number(name)}
        said = self._said().get("order")
        known = [_number_in(item) for item in said] if isinstance(said, list) else []
        ordered = [n for n in dict.fromkeys(known) if n in numbers]
        ordered += sorted(numbers - set(ordered))
        found = (read_job(self.path_of(number)) for number in ordered if number is not None)
        return [job for job in found if job is not None]

    def path_of(self, number: int) -> Path:
        """Return the folder of a job."""
        return self.path / f"{number:04d}"

    def appear(self, text: str, job: Job) -> Job:
        """Write a new job under the next number; it appears complete or not at all.

        Raises:
            StorageError: It cannot be written.
        """
        temporary_names.remove_leftovers(self.path)
        numbers = [job.number for job in self.jobs()]
        number = 1 + max([*numbers, self._last()])
        self.write_order([*numbers, number])
        added = replace(job, path=self.path_of(number), added_at=time.time())
        with files.replace_folder(added.path) as partial:
            (partial / SETTINGS).write_text(text, encoding="utf-8", newline="\n")
            record = files.json_text(record_of(added), indent=1)
            (partial / RECORD).write_text(f"{record}\n", encoding="utf-8", newline="\n")
        return added

    def write_order(self, order: list[int]) -> None:
        """Write the order of the jobs; no number is ever assigned twice.

        Raises:
            StorageError: It cannot be written.
        """
        last = max([*order, self._last()])
        files.write_json(self.path / ORDER, {"last": last, "order": order})

    def _last(self) -> int:
        return _number_in(self._said().get("last")) or 0

    def _said(self) -> dict[str, Any]:
        """Return the content of the order's file; empty if it is missing or damaged."""
        try:
            said = parse_json(read_text(self.path / ORDER))
        except (OSError, ValueError):
            return {}
        return said if isinstance(said, dict) else {}


def _wait(_: LockHolder) -> None:
    """Do nothing, so that the lock is tried again."""


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal() and len(name) <= 9 and f"{int(name):04d}" == name


def _number_in(value: Any) -> int | None:
    return value if type(value) is int and 0 < value < 10**9 else None
