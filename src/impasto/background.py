"""Writes files in a background thread, one after another, from copies in RAM."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from impasto import ram

SPARE_BYTES = 2 << 30  # of RAM, left to everything else


class BackgroundWriter:
    """A thread that does one piece of work after another, in order."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="writing")
        self._waiting: deque[Future[None]] = deque()

    def fits_in_memory(self, size_bytes: int) -> bool:
        """Whether a copy of that size fits into memory; waits for earlier work if that helps."""
        if _is_free(size_bytes):
            return True
        if not self._waiting:
            return False
        self.wait()
        return _is_free(size_bytes)

    def submit(self, work: Callable[[], object]) -> None:
        """Queue work to be done after everything submitted before.

        Raises:
            ImpastoError: The error of earlier work, if that has failed meanwhile.
        """
        self.raise_error()
        self._waiting.append(self._pool.submit(_without_result, work))

    def raise_error(self) -> None:
        """Pass on the error of work that has failed; costs nothing otherwise."""
        while self._waiting and self._waiting[0].done():
            self._waiting.popleft().result()

    def wait(self) -> None:
        """Wait until all is done, and pass on an error."""
        while self._waiting:
            self._waiting.popleft().result()

    def wait_quietly(self) -> None:
        """Wait until all is done, and drop the errors of what failed."""
        while self._waiting:
            self._waiting.popleft().exception()

    def close(self) -> None:
        """Wait until all work is done, also where it failed."""
        self._pool.shutdown(wait=True)


def _without_result(work: Callable[[], object]) -> None:
    work()


def _is_free(size_bytes: int) -> bool:
    return ram.free_bytes() > size_bytes + SPARE_BYTES
