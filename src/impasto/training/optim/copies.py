"""Copies between RAM and a GPU, beside its arithmetic: what runs after what.

A GPU has an engine for each direction, so each has a separate stream; the order between streams
is made by events, and nothing waits on the host.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

from impasto.training.optim.offload import new_stream

Mark = Any
"""A point in the work of a device; what comes before it is done when it is reached."""


class Copies(Protocol):
    """Copies whose order is told by marks."""

    def load(self, target: Tensor, source: Tensor, after: Iterable[Mark]) -> Mark:
        """Begin a copy from RAM to the device after some marks; the mark of its end."""

    def store(self, target: Tensor, source: Tensor, after: Iterable[Mark]) -> Mark:
        """Begin a copy from the device to RAM after some marks; the mark of its end."""

    def mark(self) -> Mark:
        """The point that the arithmetic has been told to reach."""

    def wait(self, mark: Mark) -> None:
        """Have the arithmetic that is told next wait for a mark."""

    def finish(self) -> None:
        """Wait on the host until all copies to RAM are made."""


class StreamedCopies:
    """Copies on two streams of a GPU.

    Args:
        device: The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._loading, self._storing = new_stream(device), new_stream(device)

    def load(self, target: Tensor, source: Tensor, after: Iterable[Mark]) -> Mark:
        """Begin a copy to the GPU on its own stream, after some events."""
        return _copy(self._loading, target, source, after)

    def store(self, target: Tensor, source: Tensor, after: Iterable[Mark]) -> Mark:
        """Begin a copy to RAM on its own stream, after some events."""
        return _copy(self._storing, target, source, after)

    def mark(self) -> Mark:
        """An event on the stream of the arithmetic."""
        return torch.cuda.current_stream(self._device).record_event()

    def wait(self, mark: Mark) -> None:
        """Have the stream of the arithmetic wait for an event."""
        torch.cuda.current_stream(self._device).wait_event(mark)

    def finish(self) -> None:
        """Wait for the stream of copies to RAM."""
        self._storing.synchronize()


class PlainCopies:
    """Copies that are made when they are begun, where RAM is the device's memory."""

    def load(self, target: Tensor, source: Tensor, after: Iterable[Mark]) -> Mark:
        """Copy to the device before returning; marks need not be waited for."""
        del after
        target.copy_(source)

    def store(self, target: Tensor, source: Tensor, after: Iterable[Mark]) -> Mark:
        """Copy to RAM before returning; marks need not be waited for."""
        del after
        target.copy_(source)

    def mark(self) -> Mark:
        """Return nothing to wait for: all copies that were begun are made."""

    def wait(self, mark: Mark) -> None:
        """Return at once: what a mark stands for is done."""

    def finish(self) -> None:
        """Return at once: all copies that were begun are made."""


def build_copies(device: torch.device) -> Copies:
    """Choose how tensors are copied from and to a device."""
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
