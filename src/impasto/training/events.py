"""Events that a run reports to its caller; the command line displays them, tests collect them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from impasto.progress import Progress, SilentProgress


class TrainingEvents(Progress, Protocol):
    """Receives the progress of a run's stages, and events such as its start and its end."""

    def started(self, summary: Mapping[str, Any], first_step: int, last_step: int) -> None:
        """Handle the start of training.

        Args:
            summary: Facts about the model, the dataset and the processes.
            first_step: The step to begin at; above 0 in a resumed run.
            last_step: Steps in all.
        """

    def stepped(self, step: int) -> None:
        """Handle the end of a step; called after every step, so it must be fast."""

    def measured(self, record: Mapping[str, Any]) -> None:
        """Handle a line of metrics that was just written."""

    def ended(self) -> None:
        """Handle the end of training, whether it finished, was stopped or failed."""


class SilentEvents(SilentProgress):
    """Training events and progress that are ignored, for callers that show nothing."""

    def started(self, summary: Mapping[str, Any], first_step: int, last_step: int) -> None:
        """Ignore the start of training."""

    def stepped(self, step: int) -> None:
        """Ignore a completed step."""

    def measured(self, record: Mapping[str, Any]) -> None:
        """Ignore a record of metrics."""

    def ended(self) -> None:
        """Ignore the end of training."""
