"""Shows that a long step is still running when there is no progress bar: in a file, pipe or log."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

FIRST_S = 10.0  # after which a user begins to wonder
LONGEST_S = 60.0


class SlowStepNotifier:
    """Prints how long the current step has been running: after 10 s, 20, 40, then every minute.

    Args:
        say: Called with a line, from a separate thread.
        total: The number of steps of the run.
        first_s: Seconds until the first line.
    """

    def __init__(self, say: Callable[[str], None], total: int, first_s: float = FIRST_S) -> None:
        self._say, self._total, self._first_s = say, total, first_s
        self._changed = threading.Condition()
        self._done: int | None = None
        self._is_paused = False
        self._since = 0.0
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)

    def start(self, done: int) -> None:
        """Start watching, after `done` completed steps."""
        self.stepped(done)
        self._thread.start()

    def stepped(self, done: int) -> None:
        """Note that `done` steps are completed, and restart the clock."""
        with self._changed:
            self._done, self._since = done, time.monotonic()
            self._changed.notify()

    def pause(self) -> None:
        """Pause during work other than a step, which shows its own progress."""
        with self._changed:
            self._is_paused = True
            self._changed.notify()

    def go_on(self) -> None:
        """End a pause, and restart the clock."""
        with self._changed:
            self._is_paused, self._since = False, time.monotonic()
            self._changed.notify()

    def stop(self) -> None:
        """Stop printing lines, and wait for the thread to end."""
        with self._changed:
            self._done = None
            self._changed.notify()
        self._thread.join()

    def _watch(self) -> None:
        wait = self._first_s
        with self._changed:
            while self._done is not None:
                silent = self._is_paused or self._done >= self._total
                if self._changed.wait(None if silent else wait):
                    wait = self._first_s  # a step or the run has ended
                    continue
                elapsed = time.monotonic() - self._since
                self._say(f"step {self._done + 1}/{self._total}: running for {elapsed:.0f} s")
                wait = min(max(elapsed, self._first_s), LONGEST_S)
