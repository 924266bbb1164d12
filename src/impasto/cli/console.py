"""What a person sees: progress bars with rate and ETA, tables, and errors as one paragraph."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from impasto.errors import ImpastoError, Interrupted
from impasto.progress import Advance

PLAIN_LINES_EVERY_S = 15.0


def show_error(error: ImpastoError) -> None:
    """Print an error to standard error."""
    stopped = isinstance(error, Interrupted)
    head = "[yellow]Stopped[/yellow]" if stopped else "[bold red]Error[/bold red]"
    _print_paragraph(RichConsole(stderr=True, highlight=False), f"{head}: {escape(str(error))}")


def _print_paragraph(console: RichConsole, text: str) -> None:
    """Break lines between words on a terminal; leave them whole in a file or a pipe."""
    console.print(text, soft_wrap=not console.is_terminal)


class RateColumn(ProgressColumn):
    """Items per second, or seconds per item where that is slower."""

    def render(self, task: Task) -> Text:
        """The rate of a task."""
        speed = task.finished_speed or task.speed
        unit = task.fields.get("unit", "items")
        if not speed:
            return Text("")
        if speed >= 1:
            return Text(f"{speed:.1f} {unit}/s", style="cyan")
        return Text(f"{1 / speed:.1f} s/{unit.removesuffix('s')}", style="cyan")


class Console:
    """Draws stages and training on a terminal; prints plain lines where there is none."""

    def __init__(self) -> None:
        self.rich = RichConsole(soft_wrap=True, highlight=False)
        self._training: Progress | None = None
        self._task: TaskID | None = None
        self._last_line = 0.0
        self._last_step = 0

    @contextlib.contextmanager
    def stage(self, description: str, total: int | None, unit: str) -> Iterator[Advance]:
        """A bar for a stage; within training it appears below the training's own."""
        began = time.perf_counter()
        done = 0
        progress, owns = self._progress()
        task = progress.add_task(description, total=total, unit=unit)

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress.update(task, advance=count)

        try:
            yield advance
        finally:
            if owns:
                progress.stop()
            else:
                progress.remove_task(task)
            if not self.rich.is_terminal and done:
                seconds = time.perf_counter() - began
                self.rich.print(f"{description}: {done} {unit} in {seconds:.1f} s")

    def note(self, message: str) -> None:
        """A line that stays."""
        self.rich.print(escape(message))

    def paragraph(self, message: str) -> None:
        """Several sentences, broken between words on a terminal."""
        _print_paragraph(self.rich, escape(message))

    def heading(self, message: str) -> None:
        """A line that opens a part of the output."""
        self.rich.print(f"\n[bold]{escape(message)}[/bold]")

    def table(self, rows: Mapping[str, Any]) -> None:
        """Names and values in two columns; a long value, such as a path, is never cut or folded."""
        width = max(map(len, rows))
        for name, value in rows.items():
            self.rich.print(f"[dim]{name:<{width}}[/dim]  {escape(str(value))}")

    def started(self, summary: Mapping[str, Any], first_step: int, last_step: int) -> None:
        """Say what is trained and open the bar."""
        parts = ", ".join(f"{name} ({n / 1e6:.1f} M)" for name, n in summary["parts"].items())
        self.table(
            {
                "Model": f"{summary['family']}, predicts {summary['prediction']}",
                "Trains": parts,
                "On": str(summary["device"])
                + (f", {summary['processes']} processes" if summary["processes"] > 1 else ""),
                "Pictures": f"{summary['pictures']}, {summary['held_out']} held out, "
                f"{len(summary['buckets'])} buckets",
                "Updates": f"{last_step} in all, {summary['updates_per_epoch']} per epoch"
                + (f"; continuing after {first_step}" if first_step else ""),
            }
        )
        if summary["too_long"]:
            self.note(
                f"{summary['too_long']} captions have over {summary['max_tokens']} tokens: their "
                f"ends are not seen. model.max_tokens can be up to 225."
            )
        if summary["with_more_lines"]:
            self.note(
                f"{summary['with_more_lines']} captions have several lines, of which the first is "
                f"used. dataset.enable_wildcard takes one at random."
            )
        if summary["refused_latents"]:
            first = summary["refused_latents"][0]
            self.note(
                f"{len(summary['refused_latents'])} .npz files do not fit and were not used; the "
                f"first is {first['path']}: {first['reason']}"
            )
        for item in summary["set_aside"][:10]:
            self.note(f"Set aside: {item['path']}: {item['reason']}")
        if len(summary["set_aside"]) > 10:
            self.note(f"... and {len(summary['set_aside']) - 10} more, all named in dataset.json")
        for line in summary.get("said_of_unused", ()):
            self.note(line)
        self._last_step = last_step
        self._training = self._new_progress()
        self._training.start()
        self._task = self._training.add_task(
            "Training", total=last_step, completed=first_step, unit="steps"
        )

    def stepped(self, step: int) -> None:
        """Move the bar."""
        if self._training is not None and self._task is not None:
            self._training.update(self._task, completed=step)

    def measured(self, record: Mapping[str, Any]) -> None:
        """Show the loss; a validation loss as a line that stays."""
        if "validation_loss" in record:
            self.rich.print(
                f"Validation loss at step {record['step']}: "
                f"[bold]{record['validation_loss']:.4f}[/bold]"
            )
        elif self._training is not None and self._task is not None:
            self._training.update(self._task, description=f"Training, loss {record['loss']:.4f}")
            self._plain_line(record)

    def ended(self) -> None:
        """Close the bar."""
        if self._training is not None:
            self._training.stop()
            self._training = None

    def _plain_line(self, record: Mapping[str, Any]) -> None:
        now = time.monotonic()
        if not self.rich.is_terminal and now - self._last_line > PLAIN_LINES_EVERY_S:
            self._last_line = now
            self.rich.print(
                f"step {record['step']}/{self._last_step}, loss {record['loss']:.4f}, "
                f"{record['images_per_s']:.1f} images/s"
            )

    def _progress(self) -> tuple[Progress, bool]:
        if self._training is not None:
            return self._training, False
        progress = self._new_progress()
        progress.start()
        return progress, True

    def _new_progress(self) -> Progress:
        return Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            RateColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self.rich,
            disable=not self.rich.is_terminal,
        )
