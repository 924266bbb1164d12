"""Terminal output: progress bars with rate and ETA, tables, and errors as one paragraph."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import TaskID

from impasto.cli.harmless import escape
from impasto.cli.heartbeat import SlowStepNotifier
from impasto.cli.recorded import task_log
from impasto.cli.stages import DISPLAY, Stage, progress_bar, progress_lines
from impasto.errors import ImpastoError, Interrupted
from impasto.progress import Advance, counted

PLAIN_LINES_EVERY_S = 15.0


def show_error(error: ImpastoError) -> None:
    """Print an error to standard error, after the word Error, or Stopped for an interrupt."""
    text = escape(str(error))
    if not isinstance(error, Interrupted):
        text = f"[bold red]Error[/bold red]: {text}"
    elif text.startswith("Stopped "):  # as "Stopped at once."
        text = f"[yellow]Stopped[/yellow]{text.removeprefix('Stopped')}"
    else:
        text = f"[yellow]Stopped[/yellow]: {text}"
    _print_paragraph(RichConsole(stderr=True, highlight=False, emoji=False), text)


def _print_paragraph(console: RichConsole, text: str) -> None:
    """Break lines between words on a terminal; leave them whole in a file or a pipe."""
    console.print(text, soft_wrap=not console.is_terminal)


class Console:
    """Shows stages and training as progress bars on a terminal, or as plain lines elsewhere."""

    def __init__(self) -> None:
        self.rich = RichConsole(soft_wrap=True, highlight=False, emoji=False)
        self._task: TaskID | None = None
        self._heartbeat: SlowStepNotifier | None = None
        self._last_line = 0.0
        self._last_step = 0
        self._training_began = 0.0
        self._shown_step = 0
        self._loss = ""
        self._log = task_log()

    @contextlib.contextmanager
    def stage(self, description: str, total: int | None, unit: str) -> Iterator[Advance]:
        """Show a progress bar and yield its advance function; show nothing if `total` is 0."""
        if total == 0:
            yield lambda _: None
            return
        began = time.perf_counter()
        drawn = progress_bar if self.rich.is_terminal else progress_lines
        done = 0

        def count(number: int) -> None:
            nonlocal done
            done += number
            advance(number)
            tell(number)

        heartbeat = self._heartbeat
        if heartbeat is not None:
            heartbeat.pause()
        try:
            with (
                drawn(self.rich, Stage(description, total, unit)) as advance,
                self._log.stage(description, total, unit)
                if self._log is not None
                else contextlib.nullcontext(_tell_nobody) as tell,
            ):
                yield count
        finally:
            if heartbeat is not None:
                heartbeat.go_on()
        if done and not (self.rich.is_terminal and self._task is not None):
            seconds = time.perf_counter() - began
            self.rich.print(f"{escape(description)}: {counted(done, unit)} in {seconds:.1f} s")

    def note(self, message: str) -> None:
        """Print a line, and add it to the task's log if this process is a task."""
        self.rich.print(escape(message))
        if self._log is not None:
            self._log.note(message)

    def _at_work(self, message: str) -> None:
        """Print a line that only a live reader needs; it is not added to the task's log."""
        self.rich.print(escape(message))

    def paragraph(self, message: str) -> None:
        """Print several sentences, wrapped between words on a terminal."""
        _print_paragraph(self.rich, escape(message))

    def heading(self, message: str) -> None:
        """Print a heading after a blank line."""
        self.rich.print(f"\n[bold]{escape(message)}[/bold]")

    def table(self, rows: Mapping[str, Any]) -> None:
        """Print names and values in two columns; long values, such as paths, are never wrapped."""
        width = max(map(len, rows), default=0)
        for name, value in rows.items():
            self.rich.print(f"[dim]{escape(f'{name:<{width}}')}[/dim]  {escape(str(value))}")

    def counts(self, title: str, counts: Counter[str]) -> None:
        """Print how often each tag was written, the most frequent first."""
        if not counts:
            self.note("No tags were written.")
            return
        self.heading(title)
        self.table(dict(counts.most_common()))

    def started(self, summary: Mapping[str, Any], first_step: int, last_step: int) -> None:
        """Print the summary of a run that starts or resumes, and open its progress bar."""
        counts = ", ".join(f"{name} ({n / 1e6:.1f} M)" for name, n in summary["parts"].items())
        regularising = summary["regularisation"]
        self.table(
            {
                "Model": f"{summary['family']}, predicts {summary['prediction']}",
                "Trains": counts,
                "On": str(summary["device"])
                + (f", {summary['processes']} processes" if summary["processes"] > 1 else ""),
                "Images": f"{summary['images']:,}, "
                + (f"{regularising:,} for regularisation, " if regularising else "")
                + f"{summary['held_out']:,} held out, "
                f"{counted(len(summary['buckets']), 'buckets')}",
                "Steps": f"{last_step:,} in all, {summary['steps_per_epoch']} per epoch"
                + (f"; continuing after {first_step}" if first_step else ""),
            }
        )
        if summary["too_long"]:
            self.note(
                f"{counted(summary['too_long'], 'captions have')} over {summary['max_tokens']} "
                f"tokens: the rest is ignored. model.max_tokens can be up to 225."
            )
        if summary["with_more_lines"]:
            self.note(
                f"{counted(summary['with_more_lines'], 'captions have')} several lines, of which "
                f"the first is used. dataset.enable_wildcard picks one at random."
            )
        if summary["refused_latents"]:
            first = summary["refused_latents"][0]
            self.note(
                f"{counted(len(summary['refused_latents']), '.npz files do')} not match and were "
                f"not used; the first is {first['path']}: {first['reason']}"
            )
        for item in summary["set_aside"][:10]:
            self.note(f"Skipped: {item['path']}: {item['reason']}")
        if len(summary["set_aside"]) > 10:
            self.note(f"... and {len(summary['set_aside']) - 10} more, all named in dataset.json")
        for line in summary.get("said_of_unused", ()):
            self.note(line)
        self._last_step, self._shown_step = last_step, first_step
        self._training_began = time.perf_counter()
        if self.rich.is_terminal:
            self._task = DISPLAY.add(self.rich, Stage("Training", last_step, "steps"), first_step)
        else:
            self._heartbeat = SlowStepNotifier(self._at_work, last_step)
            self._heartbeat.start(first_step)

    def stepped(self, step: int) -> None:
        """Advance the progress bar, or the heartbeat that prints a line now and then."""
        self._shown_step = step
        if self._task is not None:
            DISPLAY.update(self._task, completed=step)
        if self._heartbeat is not None:
            self._heartbeat.stepped(step)

    def measured(self, record: Mapping[str, Any]) -> None:
        """Show the loss in the progress bar; print a validation loss or preview score as a line."""
        if "validation_loss" in record:
            self.rich.print(_validation_line(record))
            return
        if "preview_features" in record:
            self.rich.print(_preview_line(record))
            return
        self._loss = f", loss {record['loss']:.4f}"
        if self._task is not None:
            DISPLAY.update(self._task, description=f"Training{self._loss}")
        self._plain_line(record)

    def ended(self) -> None:
        """Close the progress bar, and print a summary line in its place."""
        if self._heartbeat is not None:
            self._heartbeat.stop()
            self._heartbeat = None
        if self._task is None:
            return
        DISPLAY.remove(self._task)
        self._task = None
        seconds = time.perf_counter() - self._training_began
        self.rich.print(
            f"Training: {self._shown_step:,} of {counted(self._last_step, 'steps')}{self._loss}; "
            f"{seconds:.0f} s"
        )

    def _plain_line(self, record: Mapping[str, Any]) -> None:
        now = time.monotonic()
        if not self.rich.is_terminal and now - self._last_line > PLAIN_LINES_EVERY_S:
            self._last_line = now
            self.rich.print(
                f"step {record['step']}/{self._last_step}, loss {record['loss']:.4f}, "
                + _speed(record["images_per_s"])
            )


def _tell_nobody(_: int) -> None:
    pass


def _validation_line(record: Mapping[str, Any]) -> str:
    """Return a line with a validation loss, its standard error and the change from the base."""
    error, change = record.get("validation_se"), record.get("validation_change")
    told = f"Validation loss at step {record['step']}: [bold]{record['validation_loss']:.4f}[/bold]"
    told += "" if error is None else f" ± {error:.4f}"
    if change is not None:
        told += f", {change:+.4f} ± {record['validation_change_se']:.4f} from the base model"
    return told


def _preview_line(record: Mapping[str, Any]) -> str:
    """Return a line with the preview scores against real images, with known standard errors."""
    texts = []
    for title, name in (("kernel distance", "kernel_distance"), ("similarity", "similarity")):
        value, error = record.get(f"preview_{name}"), record.get(f"preview_{name}_se")
        if value is not None:
            texts.append(f"{title} {value:.4g}" + ("" if error is None else f" ± {error:.2g}"))
    told = ", ".join(texts) or "nothing to compare"
    return f"Previews at step {record['step']}: {told} ({record['preview_real']} images)"


def _speed(images_per_s: float) -> str:
    """Return images per second, or seconds per image below 0.1 images per second."""
    if 0 < images_per_s < 0.1:
        return f"{1 / images_per_s:.0f} s an image"
    return f"{images_per_s:.1f} images/s"
