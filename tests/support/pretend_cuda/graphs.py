"""CUDA graphs on the pretended GPU: recorded operators are called again on the same tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from clocks import DEFAULT, current_stream, host, host_waits_for, use_stream
from graph_recording import Recording, without_random_states


class Graph:
    """A replacement for `torch.cuda.CUDAGraph`."""

    def __init__(self) -> None:
        self.recording = Recording()

    def replay(self) -> None:
        self.recording.replay()
        stream = current_stream()
        for memory in self.recording.memories:  # a pool is freed after all of its work
            memory.recorded.add(stream)


@contextlib.contextmanager
def recorded(graph: Graph, pool: Any, stream: Any, capture_error_mode: str) -> Iterator[None]:
    """A replacement for `torch.cuda.graph`: waits for the GPU, and records without running.

    Args:
        graph: Receives the launched work.
        pool: The memory pool of the graph.
        stream: The stream that records.
        capture_error_mode: What other threads may do meanwhile.
    """
    del pool
    assert capture_error_mode == "thread_local", "threads that encode images use the GPU too"
    host_waits_for(DEFAULT.clock, "cuda.synchronize")
    stream.learn(host().clock)
    try:
        with use_stream(stream), without_random_states(), graph.recording:
            yield
    finally:
        graph.recording.undo()
        DEFAULT.learn(stream.clock)  # nothing has run, so no wait is needed
