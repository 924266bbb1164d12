"""Asynchronous copies between RAM and a GPU, ordered against its arithmetic.

A GPU has one copy engine per direction, so each direction has a separate stream; events order the
streams, and the CPU does not wait.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

from impasto.training.optim.offload import new_stream

Mark = Any
"""A point in the work queue of a device; all work before it is complete when it is reached."""


class Copies(Protocol):
    """Copies between RAM and a device, ordered by marks."""

    def load(self, target: Tensor, source: Tensor, after: Iterable[Mark]) -> Mark:
        """Start a copy from RAM to the device once some marks are reached; return its end mark."""

    def store(self, target: Tensor, source: Tensor, after: Iterable[Mark]) -> Mark:
        """Start a copy from the device to RAM once some marks are reached; return its end mark."""

    def mark(self) -> Mark:
        """Return a mark after all arithmetic that has been launched."""

    def wait(self, mark: Mark) -> None:
        """Make arithmetic that is launched later wait for a mark."""

    def finish(self) -> None:
        """Block until all copies to RAM are complete."""


class StreamedCopies:
    """Copies on two streams of a GPU.

    Args:
        device: The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._loading, self._storing = new_stream(device), new_stream(device)

    def load(self, target: Tensor, source: Tensor, after: Iterable[Mark]) -> Mark:
        """Start a copy to the GPU on the loading stream after some events; return its end event."""
        return _copy(self._loading, target, source, after)

    def store(self, target: Tensor, source: Tensor, after: Iterable[Mark]) -> Mark:
        """Start a copy to RAM on the storing stream, after some events; return its end event."""
        return _copy(self._storing, target, source, after)

    def mark(self) -> Mark:
        """Record and return an event on the current stream, which runs the arithmetic."""
        return torch.cuda.current_stream(self._device).record_event()

    def wait(self, mark: Mark) -> None:
        """Make the current stream, which runs the arithmetic, wait for an event."""
        torch.cuda.current_stream(self._device).wait_event(mark)

    def finish(self) -> None:
        """Block until all copies to RAM are complete."""
        self._storing.synchronize()


class PlainCopies:
    """Synchronous copies, for a CPU, where RAM is the device's memory."""

    def load(self, target: Tensor, source: Tensor, after: Iterable[Mark]) -> Mark:
        """Copy to the device before returning; marks need not be waited for."""
        del after
        target.copy_(source)

    def store(self, target: Tensor, source: Tensor, after: Iterable[Mark]) -> Mark:
        """Copy to RAM before returning; marks need not be waited for."""
        del after
        target.copy_(source)

    def mark(self) -> Mark:
        """Return None: nothing is ever pending."""

    def wait(self, mark: Mark) -> None:
        """Do nothing: all work before a mark is already complete."""

    def finish(self) -> None:
        """Do nothing: all copies are already complete."""


def build_copies(device: torch.device) -> Copies:
    """Return streamed copies for a GPU, synchronous ones for a CPU."""
    return StreamedCopies(device) if device.type == "cuda" else PlainCopies()


def _copy(
    stream: torch.cuda.Stream, target: Tensor, source: Tensor, after: Iterable[Mark]
) -> torch.cuda.Event:
    for mark in after:
        stream.wait_event(mark)
    with torch.cuda.stream(stream):
        target.copy_(source, non_blocking=True)
    done: torch.cuda.Event = stream.record_event()
    return done
