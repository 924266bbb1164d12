"""Runs the stages of a dataset, each a plain callable: batch of items -> batch of results.

A stage (probing, decoding, encoding) knows nothing of threads or processes, so another engine can
run the same callables. What goes wrong with one item is its result (`Failure`), never the end of
the others, unless the policy says `stop`.
"""

from __future__ import annotations

import itertools
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.context import SpawnContext, SpawnProcess
from types import ModuleType
from typing import Generic, Literal, TypeVar

from impasto.cpus import usable_cpus

ErrorPolicy = Literal["skip", "stop"]

I = TypeVar("I")  # noqa: E741 - an item
O = TypeVar("O")  # noqa: E741 - an outcome


@dataclass(frozen=True, slots=True)
class Failure:
    """What became of an item instead of a result.

    Attributes:
        reason: Why, in words.
        is_transient: Whether the same file may do another time: rights, memory or a decoder were
            missing. Such a failure is never remembered.
    """

    reason: str
    is_transient: bool = False


Stage = Callable[[Sequence[I]], "list[O | Failure]"]


@dataclass(frozen=True)
class LocalExecutor(Generic[I, O]):
    """Runs one stage on this machine, results in the order of the items.

    Attributes:
        stage: What is run. For processes it has to be picklable: an instance of a class at the top
            of a module.
        workers: How many batches are worked on at once; 0 works in the calling thread.
        processes: Whether the workers are processes, started afresh (`spawn`) on every system, so
            that they hold nothing of this one, or threads.
        ahead: How many batches are finished or begun before they are asked for, per worker.
    """

    stage: Stage[I, O]
    workers: int = 0
    processes: bool = False
    ahead: int = 2

    def run(self, batches: Iterable[Sequence[I]]) -> Iterator[list[tuple[I, O | Failure]]]:
        """Yield each batch's items with what became of them."""
        if self.workers == 0:
            for batch in batches:
                yield list(zip(batch, self.stage(batch), strict=True))
            return
        waiting = iter(batches)
        pool = self._pool()
        running: deque[tuple[Sequence[I], Future[list[O | Failure]]]] = deque()
        try:
            while True:
                room = self.workers * self.ahead - len(running)
                for batch in itertools.islice(waiting, room):
                    running.append((batch, self._submit(pool, batch)))
                if not running:
                    return
                batch, future = running.popleft()
                try:
                    outcomes = future.result()
                except BrokenProcessPool:
                    outcomes = self._one_by_one(batch)
                    pool.shutdown(wait=True)
                    pool = self._pool()
                    running = deque(
                        (b, self._submit(pool, b) if _went_down_with_its_pool(f) else f)
                        for b, f in running
                    )
                yield list(zip(batch, outcomes, strict=True))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self, pool: Executor, batch: Sequence[I]) -> Future[list[O | Failure]]:
        """Hand a batch to the pool; where the pool has just broken, its future says so in its turn.

        A process may end between any two batches that are handed over, and the one whose batch it
        was is found when its result is asked for, not here.
        """
        try:
            return pool.submit(self.stage, batch)
        except BrokenProcessPool as broken:
            future: Future[list[O | Failure]] = Future()
            future.set_exception(broken)
            return future

    def _pool(self, workers: int | None = None) -> Executor:
        if not self.processes:
            return ThreadPoolExecutor(workers or self.workers)
        return ProcessPoolExecutor(
            workers or self.workers,
            mp_context=_context_for(self.stage),
            initializer=_leave_interrupts_to_the_parent,
        )

    def _one_by_one(self, batch: Sequence[I]) -> list[O | Failure]:
        """Find the item that ended its process: each gets a separate process."""
        outcomes: list[O | Failure] = []
        for item in batch:
            with self._pool(1) as pool:
                try:
                    outcomes += pool.submit(self.stage, [item]).result()
                except BrokenProcessPool:
                    reason = "working on it ended the process (out of memory?)"
                    outcomes.append(Failure(reason, is_transient=True))
        return outcomes


class _FreshProcess(SpawnProcess):
    """A process that does not run the program that starts it a second time.

    `spawn` imports the main module again in each process. A script without
    `if __name__ == "__main__"` would begin anew there, and one that is typed at a prompt cannot be
    imported: every process would end at once.
    """

    def start(self) -> None:
        """Start the worker process with the main module hidden, so it is not imported again."""
        with _MAIN_LOCK:
            main = sys.modules["__main__"]
            sys.modules["__main__"] = ModuleType("__main__")
            try:
                super().start()
            finally:
                sys.modules["__main__"] = main


class _FreshContext(SpawnContext):
    Process = _FreshProcess


_MAIN_LOCK = threading.Lock()


def _context_for(stage: object) -> SpawnContext:
    """How processes for a stage are started; one that is of the main module needs that module."""
    return SpawnContext() if type(stage).__module__ == "__main__" else _FreshContext()


def _went_down_with_its_pool(future: Future[list[O | Failure]]) -> bool:
    """Whether a batch of a pool that broke, and is shut down, has to be done again."""
    return isinstance(future.exception(), BrokenProcessPool)


def chunks(items: Sequence[I], size: int) -> Iterator[Sequence[I]]:
    """Cut a sequence into batches of `size`; the last may be shorter."""
    return (items[start : start + size] for start in range(0, len(items), size))


def in_chunks(items: Iterable[I], size: int) -> Iterator[Sequence[I]]:
    """Cut an iterable into batches of `size`, each made only when it is asked for."""
    waiting = iter(items)
    while batch := list(itertools.islice(waiting, size)):
        yield batch


def default_workers(sharing: int = 1) -> int:
    """As many workers as there are CPUs for this process, 8 at most.

    Args:
        sharing: How many processes with workers of their own share the CPUs.
    """
    return max(1, min(8, usable_cpus() // sharing))


def _leave_interrupts_to_the_parent() -> None:
    for name in ("SIGINT", "SIGBREAK"):  # Windows sends the second for Ctrl-Break
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
