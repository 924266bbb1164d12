"""What a run tells whoever watches; the command line draws it, tests collect it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from impasto.progress import Progress, SilentProgress


class TrainingEvents(Progress, Protocol):
    """Progress of stages, and the moments of a run."""

    def started(self, summary: Mapping[str, Any], first_step: int, last_step: int) -> None:
        """Training is about to begin."""

    def stepped(self, step: int) -> None:
        """A step is done; called for each, so it must be cheap."""

    def measured(self, record: Mapping[str, Any]) -> None:
        """Called when a line of metrics was written."""

    def ended(self) -> None:
        """Training is over, for whatever reason."""


class SilentEvents(SilentProgress):
    """Events that nobody is told of."""

    def started(self, summary: Mapping[str, Any], first_step: int, last_step: int) -> None:
        """Accept that training begins, and tell nobody."""

    def stepped(self, step: int) -> None:
        """Accept that a step is done, and tell nobody."""

    def measured(self, record: Mapping[str, Any]) -> None:
        """Accept a line of metrics, and tell nobody."""

    def ended(self) -> None:
        """Accept that training is over, and tell nobody."""
