"""Records GPU kernels as a CUDA graph, which launches all of them again at once.

The only module that calls PyTorch's CUDA graphs. Recording does not run the kernels; each replay
runs them, with the same tensors at the same memory addresses and the same CPU numbers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Protocol

import torch

from impasto.training.devices import is_out_of_memory
from impasto.training.optim.offload import new_stream
from impasto.training.optim.step_queue import Event

MOST_GRAPHS = 64
"""Most batch shapes that are recorded; each graph takes separate memory (a node for each of some
thousand kernels) beside the pool that all share."""

Work = Callable[[], None]
"""Launches kernels, and returns nothing: its results are values written into tensors."""


class NotRecordableError(RuntimeError):
    """Work waits for the GPU, or does something else that a CUDA graph cannot hold."""


class GraphRecorder(Protocol):
    """Runs work directly, or records it for replays."""

    def run(self, work: Work) -> None:
        """Run work on the stream that records, so that libraries initialize before `record`."""

    def record(self, work: Work) -> Work:
        """Record work that was run before, without running it; return a function that replays it.

        Raises:
            NotRecordableError: A CUDA graph cannot hold the work.
        """

    def mark(self) -> Event:
        """Return an event after all work that has been launched."""


class CudaGraphRecorder:
    """Records on a separate stream; all graphs share one memory pool.

    So no two graphs may run at once, and tensors in the pool are only valid until another graph is
    replayed.

    Args:
        device: The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = new_stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def run(self, work: Work) -> None:
        """Run work on the stream that records: cuBLAS keeps a workspace per stream."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                work()
        finally:  # after an error too: its memory is freed then
            current.wait_stream(self._stream)

    def record(self, work: Work) -> Work:
        """Record work as a CUDA graph, and return a function that replays it.

        Other threads may use the GPU meanwhile: calls that CUDA refuses during a recording are
        refused in this thread only.

        Raises:
            NotRecordableError: A CUDA graph cannot hold the work.
        """
        graph, first = torch.cuda.CUDAGraph(), list[BaseException]()
        current = torch.cuda.current_stream(self._device)
        try:
            with (
                torch.cuda.stream(current),  # restores the current stream after an error too
                torch.cuda.graph(
                    graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
                ),
            ):
                try:
                    work()
                except BaseException as error:  # ending a failed recording raises another error
                    first.append(error)
                    raise
        except Exception as error:  # of the work itself, or of CUDA
            self._end_allocating()
            raise as_told(first[0] if first else error) from None
        return graph.replay

    def mark(self) -> Event:
        """Return an event after all work launched on the training stream."""
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # waits without spinning
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _end_allocating(self) -> None:
        """Tell the allocator that a failed recording has ended.

        Not all versions of PyTorch do so themselves, and those refuse to free memory then
        (`CUDAGraph.cpp`, `capture_end`; `CUDACachingAllocator.cpp`, `synchronize_and_free_events`).
        Where PyTorch has done it, the call raises an error, which is suppressed.
        """
        with contextlib.suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(self._stream.device_index, self._pool)


def as_told(error: BaseException) -> BaseException:
    """Return the error to raise for a failed recording.

    Exhausted memory and errors other than RuntimeError are returned unchanged; any other
    RuntimeError becomes a NotRecordableError with its first line.
    """
    if is_out_of_memory(error) or not isinstance(error, RuntimeError):
        return error
    told = NotRecordableError(str(error).partition("\n")[0].rstrip("."))
    told.__cause__ = error
    return told
