"""Prepares the batches of each step in threads, ahead of the step that needs them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from impasto.data.engines.stages import default_workers
from impasto.data.loading.dataset import LoadedMoments, TrainingData
from impasto.data.loading.sampler import EpochSampler, MicroBatch, OptimizerStep
from impasto.data.records import Batch

READ_AHEAD = 2  # micro-batches of cached latents that are read in advance
_LATE_AHEAD = 16  # the same if they are read from an object store
_LATE_WORKERS = 8  # threads that wait for an object store's responses

StepBatch = tuple[OptimizerStep, Batch]
"""A batch, and the step that it belongs to."""


def iterate_steps(
    data: TrainingData,
    sampler: EpochSampler,
    first_step: int,
    last_step: int,
    rank: int,
    prefetch: Callable[[Iterator[StepBatch]], Iterator[StepBatch]] = iter,
) -> Iterator[tuple[OptimizerStep, Iterator[Batch]]]:
    """Yield the steps in [first_step, last_step), each with its batches for this process.

    Threads prepare the next batches while the current one is trained on; `prefetch` moves them to a
    device.
    """
    workers = default_workers() if data.varies_images else 1
    ahead = READ_AHEAD
    if data.cache.answers_late:
        workers, ahead = max(workers, _LATE_WORKERS), _LATE_AHEAD
    with ThreadPoolExecutor(workers) as pool:
        steps = (sampler.optimizer_step(step, rank) for step in range(first_step, last_step))
        queue = (
            (optimizer_step, micro_batch)
            for optimizer_step in steps
            for micro_batch in optimizer_step.micro_batches
        )
        prepared = prefetch(_ahead(data, queue, pool, workers + ahead - 1))
        for optimizer_step, batch in prepared:
            rest = len(optimizer_step.micro_batches) - 1
            yield optimizer_step, _with_rest(batch, prepared, rest)


def _with_rest(
    first: Batch, prepared: Iterator[tuple[OptimizerStep, Batch]], rest: int
) -> Iterator[Batch]:
    yield first
    for _ in range(rest):
        yield next(prepared)[1]


def _ahead(
    data: TrainingData,
    queue: Iterator[tuple[OptimizerStep, MicroBatch]],
    pool: ThreadPoolExecutor,
    number: int,
) -> Iterator[tuple[OptimizerStep, Batch]]:
    waiting: deque[Future[LoadedMoments]] = deque()
    for optimizer_step, micro_batch in queue:
        waiting.append(pool.submit(data.load, optimizer_step, micro_batch))
        if len(waiting) >= number:
            loaded = waiting.popleft().result()
            yield loaded.optimizer_step, data.batch(loaded)
    while waiting:
        loaded = waiting.popleft().result()
        yield loaded.optimizer_step, data.batch(loaded)
