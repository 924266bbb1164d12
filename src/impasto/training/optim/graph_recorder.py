"""Records what the host launches on a GPU as a CUDA graph, to be launched again all at once.

The one place that calls PyTorch's CUDA graphs. What is recorded does not happen while it is
recorded; each replay does it again, with the same tensors at the same places in memory and the
same numbers from the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch

from impasto.training.devices import is_out_of_memory
from impasto.training.optim.offload import new_stream

Work = Callable[[], None]
"""Launches kernels, and returns nothing: what it leaves are values in tensors."""


class NotRecordableError(RuntimeError):
    """Work waits for the GPU, or does something else that a CUDA graph cannot hold."""


class GraphRecorder(Protocol):
    """Has work done as it is launched, or records it."""

    def run(self, work: Work) -> None:
        """Do work where `record` records it, which prepares what libraries make only once."""

    def record(self, work: Work) -> Work:
        """Record work that was run before, without doing it; what does it.

        Raises:
            NotRecordableError: A CUDA graph cannot hold it.
        """


class CudaGraphRecorder:
    """Records on a stream of its own; all graphs share one pool of memory.

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
        with torch.cuda.stream(self._stream):
            work()
        current.wait_stream(self._stream)

    def record(self, work: Work) -> Work:
        """Record work.

        Other threads may use the GPU meanwhile, as those that encode images do.

        Raises:
            NotRecordableError: A CUDA graph cannot hold it.
        """
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                work()
        except RuntimeError as error:
            raise _cause_of(error) from error
        return graph.replay


def _cause_of(error: RuntimeError) -> BaseException:
    """What went wrong first: an end of recording that fails after it is raised in its place."""
    causes = list(_with_contexts(error))
    first = causes[-1]
    if any(is_out_of_memory(cause) for cause in causes):
        return next(cause for cause in reversed(causes) if is_out_of_memory(cause))
    if not isinstance(first, RuntimeError):
        return first
    return NotRecordableError(str(first))


def _with_contexts(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__context__
