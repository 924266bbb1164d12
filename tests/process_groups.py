"""Threads in place of the processes of a run, which exchange texts in the same way."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from impasto.data.engines.process_group import ProcessGroup


class Threads:
    """The state shared by the threads of a group."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.texts = [""] * size
        self.barrier = threading.Barrier(size)


class ThreadGroup:
    """A thread as a member of a `ProcessGroup`; a thread that fails breaks the exchange of all."""

    def __init__(self, threads: Threads, rank: int) -> None:
        self.rank, self.size, self.local_size = rank, threads.size, threads.size
        self.is_local_first = rank == 0
        self._threads = threads

    def gather(self, text: str) -> list[str]:
        self._threads.texts[self.rank] = text
        self._threads.barrier.wait(timeout=300)
        texts = list(self._threads.texts)
        self._threads.barrier.wait(timeout=300)
        return texts

    def raise_fault(self) -> None:
        if self._threads.barrier.broken:
            raise threading.BrokenBarrierError


def in_threads(size: int, work: Callable[[ProcessGroup], object]) -> list:
    """Run `work` in `size` threads; return its results in the order of ranks."""
    threads = Threads(size)

    def one(rank: int) -> object:
        try:
            return work(ThreadGroup(threads, rank))
        except BaseException:
            threads.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        return [future.result() for future in [pool.submit(one, rank) for rank in range(size)]]
