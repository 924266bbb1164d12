"""Programs that prepare side by side and are timed one at a time, all others stopped meanwhile.

A compiled step takes minutes of a processor before its first number, and then seconds of a card. So
several may compile at once; whoever is ready takes the turn, has all others stopped (SIGSTOP),
measures on a machine that does nothing else, and lets them go on. Linux and macOS only.
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
"""Until kernels of what was stopped have left the card."""


@dataclass(frozen=True)
class Turns:
    """The programs that take turns, each the leader of a process group.

    Attributes:
        folder: Has a file for each, named by the number of its group, and the lock.
    """

    folder: Path

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """Take part, and be stopped whenever another has its turn."""
        self.folder.mkdir(parents=True, exist_ok=True)
        own = self.folder / f"{os.getpgrp()}.group"
        with self._lock():  # whoever has the turn does not know of this one
            own.touch()
        try:
            yield
        finally:
            own.unlink(missing_ok=True)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Wait for the turn, and have it until the end of the block."""
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
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.killpg(group, what)
