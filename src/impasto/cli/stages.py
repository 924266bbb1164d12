"""How a stage of work is shown: a bar on a terminal, lines now and then in a file or a pipe.

Every wait of over two seconds has a name and moves. The console (`console.py`) and the imports of
large packages (`imports.py`) share the one display that a terminal has.
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
    """Some work that takes its time.

    Attributes:
        description: What is done.
        total: How many items it has; None if that is not known.
        unit: What they are called, in the plural.
    """

    description: str
    total: int | None
    unit: str


class _CountColumn(ProgressColumn):
    """How many of how many; how many so far where the total is not known."""

    def render(self, task: Task) -> Text:
        done, unit = int(task.completed), task.fields["unit"]
        if task.total is not None:
            return Text(f"{done:,}/{int(task.total):,} {unit}", style="green")
        return Text(counted(done, unit) if done else "", style="green")


class _RateColumn(ProgressColumn):
    """Items per second, or seconds per item where that is slower."""

    def render(self, task: Task) -> Text:
        speed, unit = task.finished_speed or task.speed, task.fields["unit"]
        if not speed:
            return Text("")
        text = f"{speed:.1f} {unit}/s" if speed >= 1 else f"{1 / speed:.1f} s/{singular(unit)}"
        return Text(text, style="cyan")


class _RemainingColumn(ProgressColumn):
    """The time left, once it can be told."""

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
    """The place on the terminal where bars are: made with the first of them, gone with the last."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._lock = threading.Lock()

    def add(self, rich: RichConsole, stage: Stage, completed: int = 0) -> TaskID:
        """Show a stage below those that are shown already."""
        with self._lock:
            if self._progress is None:
                self._progress = _new_progress(rich)
                self._progress.start()
            return self._progress.add_task(
                escape(stage.description), total=stage.total, completed=completed, unit=stage.unit
            )

    def update(self, task: TaskID, **changes: Any) -> None:
        """Move the bar of a stage, or say something else of it."""
        progress = self._progress
        if progress is not None:
            progress.update(task, **changes)

    def remove(self, task: TaskID) -> None:
        """Take a stage away; nothing stays where the last one was."""
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
"""Stages that are told of in lines just now."""


@contextlib.contextmanager
def progress_bar(rich: RichConsole, stage: Stage) -> Iterator[Advance]:
    """A stage as a bar on a terminal, with a spinner and the time."""
    task = DISPLAY.add(rich, stage)
    try:
        yield lambda count: DISPLAY.update(task, advance=count)
    finally:
        DISPLAY.remove(task)


@contextlib.contextmanager
def progress_bar_if_slow(rich: RichConsole, stage: Stage) -> Iterator[None]:
    """A stage that is shown on a terminal only if it lasts, so that nothing flickers."""
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
    """A stage as lines: its name if it takes over two seconds, then how far it is.

    One of unknown length within another is part of that one's wait, and says nothing itself.
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
        return f"{stage.description}: at work for {seconds:.0f} s"
    if stage.total is None:
        return f"{stage.description}: {counted(done, stage.unit)} in {seconds:.0f} s"
    return f"{stage.description}: {done:,} of {counted(stage.total, stage.unit)}"
