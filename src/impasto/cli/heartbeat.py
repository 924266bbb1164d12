"""Shows that a step is at work where no bar moves: in a file, a pipe, a notebook's log."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

FIRST_S = 10.0  # after which a person begins to wonder
LONGEST_S = 60.0


class SlowStepNotifier:
    """Says how long the current step has been at work: after 10 s, 20, 40, then every minute.

    Args:
        say: Called with a line, from a thread of its own.
        total: How many steps the run has.
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
        """Begin to watch, after `done` steps."""
        self.stepped(done)
        self._thread.start()

    def stepped(self, done: int) -> None:
        """Another step is done: begin to count anew."""
        with self._changed:
            self._done, self._since = done, time.monotonic()
            self._changed.notify()

    def pause(self) -> None:
        """Something other than a step has begun, which shows itself that it is at work."""
        with self._changed:
            self._is_paused = True
            self._changed.notify()

    def go_on(self) -> None:
        """End a pause, and count the time from now on."""
        with self._changed:
            self._is_paused, self._since = False, time.monotonic()
            self._changed.notify()

    def stop(self) -> None:
        """Stop printing lines, and wait for the thread that does."""
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
                    wait = self._first_s  # a step is done, or the run
                    continue
                elapsed = time.monotonic() - self._since
                self._say(f"step {self._done + 1}/{self._total}: at work for {elapsed:.0f} s")
                wait = min(max(elapsed, self._first_s), LONGEST_S)
