"""Shows the progress of a stage of work: a bar on a terminal, or lines in a file or a pipe.

Every wait of over two seconds has a name and shows progress. The console (`console.py`) and the
imports of large packages (`imports.py`) share the single display of a terminal.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from impasto.cli.harmless import escape
from impasto.progress import Advance, counted, singular

SHOWN_AFTER_S = 0.3
FIRST_LINE_AFTER_S = 2.0
LINES_EVERY_S = 15.0


@dataclass(frozen=True)
class Stage:
    """A stage of work whose progress is shown.

    Attributes:
        description: The name of the work.
        total: The number of items; None if it is unknown.
        unit: The name of the items, in the plural.
    """

    description: str
    total: int | None
    unit: str


class _CountColumn(ProgressColumn):
    """Shows completed and total items, or only completed ones if the total is unknown."""

    def render(self, task: Task) -> Text:
        done, unit = int(task.completed), task.fields["unit"]
        if task.total is not None:
            return Text(f"{done:,}/{int(task.total):,} {unit}", style="green")
        return Text(counted(done, unit) if done else "", style="green")


class _RateColumn(ProgressColumn):
    """Shows items per second, or seconds per item below one item per second."""

    def render(self, task: Task) -> Text:
        speed, unit = task.finished_speed or task.speed, task.fields["unit"]
        if not speed:
            return Text("")
        text = f"{speed:.1f} {unit}/s" if speed >= 1 else f"{1 / speed:.1f} s/{singular(unit)}"
        return Text(text, style="cyan")


class _RemainingColumn(ProgressColumn):
    """Shows the remaining time, once it can be estimated."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        seconds = task.time_remaining
        if task.total is None or seconds is None or task.finished:
            return Text("")
        minutes, seconds = divmod(int(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        left = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
        return Text(f"ETA {left}", style="cyan")


class _Display:
    """The progress bars on the terminal; created with the first bar and removed with the last."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._lock = threading.Lock()

    def add(self, rich: RichConsole, stage: Stage, completed: int = 0) -> TaskID:
        """Show a bar for a stage below the existing ones, and return its id."""
        with self._lock:
            if self._progress is None:
                self._progress = _new_progress(rich)
                self._progress.start()
            return self._progress.add_task(
                escape(stage.description), total=stage.total, completed=completed, unit=stage.unit
            )

    def update(self, task: TaskID, **changes: Any) -> None:
        """Update the progress or description of a bar."""
        progress = self._progress
        if progress is not None:
            progress.update(task, **changes)

    def remove(self, task: TaskID) -> None:
        """Remove a bar; with the last one, the whole display is removed."""
        with self._lock:
            if self._progress is None:
                return
            self._progress.remove_task(task)
            if not self._progress.tasks:
                self._progress.stop()
                self._progress = None


def _new_progress(rich: RichConsole) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        _CountColumn(),
        _RateColumn(),
        TimeElapsedColumn(),
        _RemainingColumn(),
        console=rich,
        transient=True,
    )


DISPLAY = _Display()
_speaking: list[Stage] = []
"""Stages that are currently shown as lines."""


@contextlib.contextmanager
def progress_bar(rich: RichConsole, stage: Stage) -> Iterator[Advance]:
    """Show a stage as a bar on a terminal, with a spinner and the time; yield its advance."""
    task = DISPLAY.add(rich, stage)
    try:
        yield lambda count: DISPLAY.update(task, advance=count)
    finally:
        DISPLAY.remove(task)


@contextlib.contextmanager
def progress_bar_if_slow(rich: RichConsole, stage: Stage) -> Iterator[None]:
    """Show a stage on a terminal only if it takes over 0.3 s, to avoid flicker."""
    tasks: list[TaskID] = []
    timer = threading.Timer(SHOWN_AFTER_S, lambda: tasks.append(DISPLAY.add(rich, stage)))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        for task in tasks:
            DISPLAY.remove(task)


@contextlib.contextmanager
def progress_lines(rich: RichConsole, stage: Stage) -> Iterator[Advance]:
    """Show a stage as lines: its name if it takes over two seconds, then its progress.

    A stage of unknown length inside another is part of the outer stage and prints nothing.
    """
    if _speaking and stage.total is None:
        yield lambda _: None
        return
    done, began, over = 0, time.monotonic(), threading.Event()

    def advance(count: int) -> None:
        nonlocal done
        done += count

    def speak() -> None:
        pause = FIRST_LINE_AFTER_S
        while not over.wait(pause):
            seconds = time.monotonic() - began
            rich.print(escape(_plain_text(stage, done, seconds, first=pause < LINES_EVERY_S)))
            pause = LINES_EVERY_S

    speaker = threading.Thread(target=speak, name="impasto-progress", daemon=True)
    speaker.start()
    _speaking.append(stage)
    try:
        yield advance
    finally:
        _speaking.remove(stage)
        over.set()
        speaker.join()


def _plain_text(stage: Stage, done: int, seconds: float, *, first: bool) -> str:
    if first:
        return f"{stage.description} ..."
    if not done:
        return f"{stage.description}: running for {seconds:.0f} s"
    if stage.total is None:
        return f"{stage.description}: {counted(done, stage.unit)} in {seconds:.0f} s"
    return f"{stage.description}: {done:,} of {counted(stage.total, stage.unit)}"
