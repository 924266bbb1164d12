"""The interface by which long-running work reports progress; the command line draws the bars."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

Advance = Callable[[int], None]


@runtime_checkable
class Progress(Protocol):
    """Shows stages of work and messages."""

    def stage(
        self, description: str, total: int | None, unit: str
    ) -> contextlib.AbstractContextManager[Advance]:
        """Open a stage of `total` items; call the result with the number of items completed."""

    def note(self, message: str) -> None:
        """Show a line that stays visible."""


SHOWN_AFTER_S = 2.0
"""Seconds after which the progress of a stage is shown."""


@contextlib.contextmanager
def slow_stage(progress: Progress, description: str, total: int, unit: str) -> Iterator[Advance]:
    """Open a stage that is shown only after two seconds, for work that is often faster.

    The progress shown then counts the remaining items.
    """
    began, done = time.monotonic(), 0
    advance: Advance | None = None
    with contextlib.ExitStack() as opened:

        def count(number: int) -> None:
            nonlocal done, advance
            done += number
            if advance is not None:
                advance(number)
            elif time.monotonic() - began > SHOWN_AFTER_S:
                left = total - done  # the rate would be wrong with the items before
                advance = opened.enter_context(progress.stage(description, left, unit))

        yield count


_AGREEING = {"have": "has", "are": "is", "were": "was", "do": "does", "lose": "loses"}


def counted(number: int, plural: str) -> str:
    """Return a number with its noun, in grammatical English: `1 image`, `1,200 files were read`.

    Args:
        number: The number.
        plural: The plural noun, optionally followed by a verb: `long captions have`.
    """
    if number != 1:
        return f"{number:,} {plural}"
    named, verb = plural, ""
    first, _, last = plural.rpartition(" ")
    if last in _AGREEING:
        named, verb = first, f" {_AGREEING[last]}"
    head, of, rest = named.partition(" of ")
    return f"1 {singular(head)}{of}{rest}{verb}"


def percent(fraction: float, digits: int = 1) -> str:
    """Return a fraction in percent, with a number of digits after the point: `22.5 %`."""
    return f"{100 * fraction:.{digits}f} %"


def none_of(number: int, plural: str) -> str:
    """Return the subject of a negative sentence: `None of the 3 images`, or `Not one image`."""
    return f"Not one {singular(plural)}" if number == 1 else f"None of the {number:,} {plural}"


def singular(plural: str) -> str:
    """Return the singular of a regular English plural; units such as MiB stay."""
    if plural.endswith("ies"):
        return f"{plural[:-3]}y"
    if plural.endswith(("ches", "shes", "xes", "sses")):
        return plural[:-2]
    return plural[:-1] if plural.endswith("s") else plural


def duration_text(seconds: float) -> str:
    """Return a duration as text in one or two units: `45 s`, `12 min`, `2 d 3 h`."""
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours = round(minutes / 60)
    return f"{hours} h" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def size_text(size: int) -> str:
    """Return a number of bytes as text: `512 bytes`, `3.4 MiB`."""
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 1 << power:
            return f"{size / (1 << power):.1f} {unit}"
    return counted(size, "bytes")


def in_mib(advance: Advance) -> Advance:
    """Return a counter of bytes that advances `advance` by whole MiB, for stages of large files."""
    done = 0

    def count(size: int) -> None:
        nonlocal done
        before, done = done, done + size
        advance((done >> 20) - (before >> 20))

    return count


class SilentProgress:
    """Shows nothing: for tests, callers from Python, and processes other than the main one."""

    @contextlib.contextmanager
    def stage(
        self,
        description: str,  # noqa: ARG002
        total: int | None,  # noqa: ARG002
        unit: str,  # noqa: ARG002
    ) -> Iterator[Advance]:
        """Accept the stage and show nothing."""
        yield lambda _: None

    def note(self, message: str) -> None:
        """Accept the line and show nothing."""
