"""Finds changes in a run directory since the last read."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from impasto.runs import RunDirectory, RunState
from impasto.runs.events import read_events, stage_text
from impasto.runs.lines import size_of
from impasto.studio.curves import numbers_of, read_records

_LINES_AT_ONCE = 500
_POSITION = re.compile(r"(\d{1,15})\.(\d{1,15})\.(\d{1,9})", re.ASCII)


@dataclass(frozen=True)
class RunChanges:
    """The changes of a run since the last read.

    Attributes:
        state: The state of the run; None if it has not changed.
        metrics: New lines of metrics: the step, and the values by name.
        has_more: Whether `metrics` is cut to its last lines, so that the whole file must be read
            again.
        lines: New lines of the log.
        samples: Steps whose previews are new.
    """

    state: RunState | None = None
    metrics: list[dict[str, Any]] = field(default_factory=list)
    lines: list[dict[str, str]] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    has_more: bool = False

    @property
    def is_nothing(self) -> bool:
        """Whether the run has not changed since the last read."""
        return self.state is None and not (self.metrics or self.lines or self.samples)


class RunWatch:
    """Reads the changes of a run repeatedly.

    Args:
        run: The run.
        position: An earlier value of `position`, up to which everything has been shown. If it is
            empty or invalid, everything that exists now counts as shown.
    """

    def __init__(self, run: RunDirectory, position: str = "") -> None:
        self._run = run
        self._shown: Mapping[str, Any] | None = None
        self._samples = set(run.sampled_steps())
        found = _POSITION.fullmatch(position)
        if found is None:
            self._metrics, self._events = size_of(run.metrics_file), size_of(run.events_file)
        else:
            self._metrics, self._events = int(found[1]), int(found[2])
            self._samples = {step for step in self._samples if step < int(found[3])}

    @property
    def position(self) -> str:
        """The position read so far: bytes of metrics and events, and newest sampled step + 1."""
        return f"{self._metrics}.{self._events}.{max(self._samples, default=-1) + 1}"

    def look(self) -> RunChanges:
        """Return the changes of the run since the last call."""
        state = self._run.state()
        shown = {k: v for k, v in state.status.items() if k != "updated_at"}
        shown |= {"": (state.state, state.is_alive, self._run.is_there())}
        changed, self._shown = shown != self._shown, shown
        metrics = self._new_metrics()
        return RunChanges(
            state if changed else None,
            metrics[-_LINES_AT_ONCE:],
            self._new_lines(),
            self._new_samples(),
            has_more=len(metrics) > _LINES_AT_ONCE,
        )

    def _new_metrics(self) -> list[dict[str, Any]]:
        if size_of(self._run.metrics_file) < self._metrics:
            self._metrics = 0  # a resumed run has cut off the steps that it repeats
        found = []
        for end, record in read_records(self._run.metrics_file, self._metrics):
            self._metrics = end
            found.append({"step": record["step"], "values": numbers_of(record)})
        return found

    def _new_lines(self) -> list[dict[str, str]]:
        if size_of(self._run.events_file) < self._events:
            self._events = 0
        found = []
        for end, event in read_events(self._run.events_file, self._events):
            self._events = end
            line = line_of(event)
            if line is not None:
                found.append(line)
        return found[-_LINES_AT_ONCE:]

    def _new_samples(self) -> list[int]:
        steps = set(self._run.sampled_steps())
        new = sorted(steps - self._samples)
        self._samples = steps
        return new


def line_of(event: Mapping[str, Any]) -> dict[str, str] | None:
    """Return an event as a line of the log, or None if the log does not show it."""
    text = _text_of(event)
    if text is None:
        return None
    at = event.get("time")
    shown = ""
    if isinstance(at, (int, float)) and 0 <= at < 2**33:
        shown = time.strftime("%H:%M:%S", time.localtime(at))
    return {"time": shown, "kind": str(event["kind"]), "text": text}


def _text_of(event: Mapping[str, Any]) -> str | None:
    kind, text = event["kind"], str(event.get("text", ""))
    if kind in ("note", "warning"):
        return text
    if kind == "stage":
        return stage_text(event) if event.get("ended") else None
    if kind == "command":
        return f"{event.get('command')}: {text}"
    if kind == "training":
        return f"Training: step {event.get('step')} of {event.get('total_steps')}"
    if kind == "begin":
        return f"Process {event.get('pid')} on {event.get('host')} started working on the run"
    return "The process has stopped working on the run" if kind == "end" else None
