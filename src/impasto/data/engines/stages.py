"""Runs the stages of a dataset, each a plain callable: batch of items -> batch of results.

A stage (probing, decoding, encoding) is independent of threads and processes, so another engine
can run the same callables. An error with one item becomes its result (`Failure`) and does not
affect the others, unless the policy is `stop`.
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
    """The outcome of an item that has no result.

    Attributes:
        reason: Why, as a text for the user.
        is_transient: Whether another attempt on the same file may succeed: permissions, memory or a
            decoder were missing. Such a failure is never cached.
    """

    reason: str
    is_transient: bool = False


Stage = Callable[[Sequence[I]], "list[O | Failure]"]


@dataclass(frozen=True)
class LocalExecutor(Generic[I, O]):
    """Runs one stage on this machine; results are in the order of the items.

    Attributes:
        stage: The stage. For processes it must be picklable: an instance of a class at the top of a
            module.
        workers: Number of batches processed concurrently; 0 runs in the calling thread.
        processes: Whether the workers are processes instead of threads; they are started with
            `spawn` on every system, so that they inherit nothing from this one.
        ahead: Number of batches per worker that are started before they are requested.
    """

    stage: Stage[I, O]
    workers: int = 0
    processes: bool = False
    ahead: int = 2

    def run(self, batches: Iterable[Sequence[I]]) -> Iterator[list[tuple[I, O | Failure]]]:
        """Yield each batch's items with their results."""
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
        """Submit a batch to the pool; if the pool is broken, return a future with that error.

        A process may end between any two submissions; the batch that ended it is determined when
        its result is requested, not here.
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
        """Run each item in a separate process, to find the one that ends its process."""
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
    """A process that does not import the main program again.

    `spawn` imports the main module in each process. A script without `if __name__ == "__main__"`
    would start over there, and a main module typed at a prompt cannot be imported: every process
    would end at once.
    """

    def start(self) -> None:
        """Start the worker with the main module hidden, so that it is not imported again."""
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
    """Return the multiprocessing context; a stage defined in the main module needs that module."""
    return SpawnContext() if type(stage).__module__ == "__main__" else _FreshContext()


def _went_down_with_its_pool(future: Future[list[O | Failure]]) -> bool:
    """Return whether a batch has to be repeated because its pool broke."""
    return isinstance(future.exception(), BrokenProcessPool)


def chunks(items: Sequence[I], size: int) -> Iterator[Sequence[I]]:
    """Cut a sequence into batches of `size`; the last may be shorter."""
    return (items[start : start + size] for start in range(0, len(items), size))


def in_chunks(items: Iterable[I], size: int) -> Iterator[Sequence[I]]:
    """Cut an iterable into batches of `size`, each made only when it is requested."""
    waiting = iter(items)
    while batch := list(itertools.islice(waiting, size)):
        yield batch


def default_workers(sharing: int = 1) -> int:
    """Return the number of CPUs available to this process, 8 at most, as the number of workers.

    Args:
        sharing: Number of processes with their own workers that share the CPUs.
    """
    return max(1, min(8, usable_cpus() // sharing))


def _leave_interrupts_to_the_parent() -> None:
    for name in ("SIGINT", "SIGBREAK"):  # Windows sends the second for Ctrl-Break
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
