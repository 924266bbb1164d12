"""Keeps the host from being many steps ahead of the GPU.

A step of CUDA graphs is some launches, so the host could queue dozens of them, each with a batch
in VRAM that waits for its turn. A few are enough for the GPU never to wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

MOST_QUEUED = 2
"""Steps that the GPU has not done when the host begins with another one: one that it computes, and
one that follows at once."""


class Event(Protocol):
    """A place in what was launched on a GPU, as `torch.cuda.Event`."""

    def query(self) -> bool:
        """Whether the GPU has reached the event."""

    def synchronize(self) -> None:
        """Have the host wait until the GPU has reached the event."""


class StepQueue:
    """Waits, before a step is launched, until few enough of those before are left to do.

    Args:
        mark: Gives the event after all that has been launched.
    """

    def __init__(self, mark: Callable[[], Event]) -> None:
        self._mark = mark
        self._ends: deque[Event] = deque()

    def begin_step(self) -> None:
        """Wait if more than `MOST_QUEUED` steps have not been done."""
        self._ends.append(self._mark())
        if len(self._ends) > MOST_QUEUED:
            end = self._ends.popleft()
            if not end.query():
                end.synchronize()
