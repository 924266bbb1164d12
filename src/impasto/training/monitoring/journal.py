"""Writes the events of a run to its directory as well: to `events.jsonl` and `status.json`."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

from impasto.progress import Advance
from impasto.runs import RunDirectory
from impasto.runs.events import EventLog
from impasto.training.events import TrainingEvents


class RecordedEvents:
    """Passes events on, and records them in the run directory once it is open.

    Args:
        events: Also receives the events.

    Attributes:
        log: The file that events are appended to.
    """

    def __init__(self, events: TrainingEvents) -> None:
        self.log = EventLog()
        self._events = events
        self._run: RunDirectory | None = None
        self._total_steps = 0
        self._stages: list[dict[str, Any]] = []
        self._began, self._first_step = time.monotonic(), 0

    def open(self, run: RunDirectory) -> None:
        """Record events in the directory of a run from now on, and write the earlier ones first."""
        self._run = run
        self.log.open(run.events_file)

    @contextlib.contextmanager
    def stage(self, description: str, total: int | None, unit: str) -> Iterator[Advance]:
        """Record a stage: its start, its end, and its progress every few seconds."""
        if total == 0:
            with self._events.stage(description, total, unit) as advance:
                yield advance
            return
        done = 0
        shown = {
            "stage": description, "stage_done": 0, "stage_total": total, "stage_unit": unit,
        }  # fmt: skip

        def count(number: int) -> None:
            nonlocal done
            done += number
            if self._stages and self._stages[-1] is shown:
                self._note(stage_done=done)
            tell(number)
            advance(number)

        self._stages.append(shown)
        self._note(**shown)
        try:
            with (
                self.log.stage(description, total, unit) as tell,
                self._events.stage(description, total, unit) as advance,
            ):
                yield count
        finally:
            self._stages = [stage for stage in self._stages if stage is not shown]
            # if two threads each have a stage, show the one that continues
            self._note(**(self._stages[-1] if self._stages else dict.fromkeys(shown)))

    def note(self, message: str) -> None:
        """Record a message, and pass it on."""
        self.log.note(message)
        self._events.note(message)

    def started(self, summary: Mapping[str, Any], first_step: int, last_step: int) -> None:
        """Record that training begins, and pass it on."""
        self._total_steps, self._first_step = last_step, first_step
        self._began = time.monotonic()
        self.log.add("training", step=first_step, total_steps=last_step)
        self._events.started(summary, first_step, last_step)

    def stepped(self, step: int) -> None:
        """Record the number of completed steps in the status, and pass it on."""
        self._note(step=step)
        self._events.stepped(step)

    def measured(self, record: Mapping[str, Any]) -> None:
        """Record a line of metrics in the log, its loss and speed in the status, and pass it on."""
        step = int(record["step"])
        self.log.add("step", step=step)
        done = step - self._first_step
        if "loss" in record and done > 0:
            seconds = (time.monotonic() - self._began) / done
            self._note(
                loss=_finite(record["loss"]),
                images_per_s=_finite(record.get("images_per_s")),
                seconds_left=round(seconds * (self._total_steps - step), 1),
            )
        self._events.measured(record)

    def ended(self) -> None:
        """Pass on that training is over."""
        self._events.ended()

    def close(self) -> None:
        """Record that this process has ended its work on the run."""
        self.log.add("end")

    def _note(self, **details: Any) -> None:
        if self._run is not None:
            self._run.note_status(**details)


def _finite(number: float | None) -> float | None:
    """Return a number if it is finite, else None (JSON has no NaN), which removes the entry."""
    return number if number is not None and math.isfinite(number) else None
