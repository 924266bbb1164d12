"""Records what the host launches on a GPU as a CUDA graph, to be launched again all at once.

The one place that calls PyTorch's CUDA graphs. What is recorded does not happen while it is
recorded; each replay does it again, with the same tensors at the same places in memory and the
same numbers from the host.
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
"""Shapes of batches that are recorded; each graph takes memory of its own (a node for each of some
thousand kernels) beside the pool that all share."""

Work = Callable[[], None]
"""Launches kernels, and returns nothing: what it leaves are values in tensors."""


class NotRecordableError(RuntimeError):
    """Work waits for the GPU, or does something else that a CUDA graph cannot hold."""


class GraphRecorder(Protocol):
    """Has work done as it is launched, or records it."""

    def run(self, work: Work) -> None:
        """Do work where `record` records it, which prepares what libraries make only once."""

    def record(self, work: Work) -> Work:
        """Record work that was run before, without doing it, and return what replays it.

        Raises:
            NotRecordableError: A CUDA graph cannot hold it.
        """

    def mark(self) -> Event:
        """The event after all that has been launched."""


class CudaGraphRecorder:
    """Records on a separate stream; all graphs share one pool of memory.

    So no two of them may run at once, and nothing that a graph leaves in memory of its own
    outlives the replay of another one.

    Args:
        device: The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = new_stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def run(self, work: Work) -> None:
        """Do work on the stream that records: cuBLAS keeps a workspace for each stream."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                work()
        finally:  # after an error too: what it used is freed then
            current.wait_stream(self._stream)

    def record(self, work: Work) -> Work:
        """Record work as a CUDA graph, and return what replays it.

        Other threads may use the GPU meanwhile: a call that CUDA refuses during a recording is
        refused in this thread alone.

        Raises:
            NotRecordableError: A CUDA graph cannot hold it.
        """
        graph, first = torch.cuda.CUDAGraph(), list[BaseException]()
        current = torch.cuda.current_stream(self._device)
        try:
            with (
                torch.cuda.stream(current),  # which is left at an error too
                torch.cuda.graph(
                    graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
                ),
            ):
                try:
                    work()
                except BaseException as error:  # the end of a recording that failed fails as well
                    first.append(error)
                    raise
        except Exception as error:  # of the work itself, or of CUDA
            self._end_allocating()
            raise as_told(first[0] if first else error) from None
        return graph.replay

    def mark(self) -> Event:
        """The event after all that has been launched on the stream of the training."""
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # waits asleep
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _end_allocating(self) -> None:
        """Have the allocator know that a recording that failed has ended.

        Not all versions of PyTorch do that, and they refuse to free memory then (`CUDAGraph.cpp`,
        `capture_end`; `CUDACachingAllocator.cpp`, `synchronize_and_free_events`). If it has done so
        it raises.
        """
        with contextlib.suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(self._stream.device_index, self._pool)


def as_told(error: BaseException) -> BaseException:
    """The error of a recording: memory that ran out and the program's own errors stay as they are.

    Everything else is something that a graph cannot hold.
    """
    if is_out_of_memory(error) or not isinstance(error, RuntimeError):
        return error
    told = NotRecordableError(str(error).partition("\n")[0].rstrip("."))
    told.__cause__ = error
    return told
