"""Writes files in a background thread, one after another, from copies in RAM."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from impasto import ram

SPARE_BYTES = 2 << 30  # of RAM, left for everything else


class BackgroundWriter:
    """Runs pieces of work on one thread, in the order in which they were submitted."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="writing")
        self._waiting: deque[Future[None]] = deque()

    def fits_in_memory(self, size_bytes: int) -> bool:
        """Return whether a copy of this size fits into RAM, waiting for earlier work if needed."""
        if _is_free(size_bytes):
            return True
        if not self._waiting:
            return False
        self.wait()
        return _is_free(size_bytes)

    def submit(self, work: Callable[[], object]) -> None:
        """Queue work to be done after everything that was submitted before.

        Raises:
            ImpastoError: Earlier work has failed meanwhile; this is its error.
        """
        self.raise_error()
        self._waiting.append(self._pool.submit(_without_result, work))

    def raise_error(self) -> None:
        """Raise the error of finished work that failed, without waiting for unfinished work."""
        while self._waiting and self._waiting[0].done():
            self._waiting.popleft().result()

    def wait(self) -> None:
        """Wait until all work is done; raise the first error."""
        while self._waiting:
            self._waiting.popleft().result()

    def wait_quietly(self) -> None:
        """Wait until all work is done, and discard its errors."""
        while self._waiting:
            self._waiting.popleft().exception()

    def close(self) -> None:
        """Wait until all work is done, and end the thread; errors are not raised."""
        self._pool.shutdown(wait=True)


def _without_result(work: Callable[[], object]) -> None:
    work()


def _is_free(size_bytes: int) -> bool:
    return ram.free_bytes() > size_bytes + SPARE_BYTES
