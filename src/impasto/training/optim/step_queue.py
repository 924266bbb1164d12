"""Limits how many steps the CPU queues ahead of the GPU.

A step of CUDA graphs is only a few launches, so the CPU could queue dozens of steps, each with a
batch waiting in VRAM. A few are enough to keep the GPU busy.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

MOST_QUEUED = 2
"""Most steps that the GPU has not completed when the CPU launches another: one that is running, and
one that follows immediately."""


class Event(Protocol):
    """A point in the work launched on a GPU, such as a `torch.cuda.Event`."""

    def query(self) -> bool:
        """Return whether the GPU has reached the event."""

    def synchronize(self) -> None:
        """Block until the GPU has reached the event."""


class StepQueue:
    """Blocks before a step is launched until at most `MOST_QUEUED` earlier steps are incomplete.

    Args:
        mark: Returns an event after all work that has been launched.
    """

    def __init__(self, mark: Callable[[], Event]) -> None:
        self._mark = mark
        self._ends: deque[Event] = deque()

    def begin_step(self) -> None:
        """Block while more than `MOST_QUEUED` earlier steps are incomplete."""
        self._ends.append(self._mark())
        if len(self._ends) > MOST_QUEUED:
            end = self._ends.popleft()
            if not end.query():
                end.synchronize()
