"""Programs that prepare in parallel and are timed one at a time while all others are stopped.

A compiled step takes minutes of CPU time before its first number, and then seconds on a GPU. So
several compile at once; the first one ready takes its turn: it stops all others (SIGSTOP), measures
on an otherwise idle machine, and resumes them (SIGCONT). Linux and macOS only.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SETTLES_S = 0.5
"""Seconds until the kernels of stopped programs have finished on the GPU."""


@dataclass(frozen=True)
class Turns:
    """The programs that take turns, each the leader of a process group.

    Attributes:
        folder: Contains a file per program, named by its process group id, and the lock.
    """

    folder: Path

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """Take part for the block, and be stopped whenever another program has its turn."""
        self.folder.mkdir(parents=True, exist_ok=True)
        own = self.folder / f"{os.getpgrp()}.group"
        with self._lock():  # a program that has its turn would not stop this one
            own.touch()
        try:
            yield
        finally:
            own.unlink(missing_ok=True)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Wait for a turn, and hold it until the end of the block."""
        with self._lock():
            others = self._others()
            _tell(others, signal.SIGSTOP)
            try:
                time.sleep(_SETTLES_S)
                yield
            finally:
                _tell(others, signal.SIGCONT)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _others(self) -> list[int]:
        groups = [int(file.stem) for file in self.folder.glob("*.group")]
        return [group for group in groups if group != os.getpgrp()]


def _tell(groups: list[int], what: signal.Signals) -> None:
    for group in groups:
        with contextlib.suppress(ProcessLookupError):  # it has ended in the meantime
            os.killpg(group, what)
