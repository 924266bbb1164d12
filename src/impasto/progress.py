"""The interface by which long-running work reports progress; the command line draws the bars."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

Advance = Callable[[int], None]


@runtime_checkable
class Progress(Protocol):
    """Something that can show stages of work."""

    def stage(
        self, description: str, total: int | None, unit: str
    ) -> contextlib.AbstractContextManager[Advance]:
        """Open a stage of `total` items; the value is called with the number of items done."""

    def note(self, message: str) -> None:
        """Show one line that stays."""


SHOWN_AFTER_S = 2.0
"""Seconds after which a person wants to see how far something is."""


@contextlib.contextmanager
def slow_stage(progress: Progress, description: str, total: int, unit: str) -> Iterator[Advance]:
    """Open a stage that is shown only after two seconds, for work that is often faster.

    It then shows the remaining items.
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
                left = total - done  # a rate of what came before would be wrong
                advance = opened.enter_context(progress.stage(description, left, unit))

        yield count


_AGREEING = {"have": "has", "are": "is", "were": "was", "do": "does", "lose": "loses"}


def counted(number: int, plural: str) -> str:
    """Return a number with its noun, in grammatical English: `1 image`, `1,200 files were read`.

    Args:
        number: The number.
        plural: The plural, perhaps with a verb at its end: `long captions have`.
    """
    if number != 1:
        return f"{number:,} {plural}"
    named, verb = plural, ""
    first, _, last = plural.rpartition(" ")
    if last in _AGREEING:
        named, verb = first, f" {_AGREEING[last]}"
    head, of, rest = named.partition(" of ")
    return f"1 {singular(head)}{of}{rest}{verb}"


def none_of(number: int, plural: str) -> str:
    """The subject of a sentence that denies something of all: `None of the 3 images`."""
    return f"Not one {singular(plural)}" if number == 1 else f"None of the {number:,} {plural}"


def singular(plural: str) -> str:
    """Return the singular of a regular English plural; units such as MiB stay."""
    if plural.endswith("ies"):
        return f"{plural[:-3]}y"
    if plural.endswith(("ches", "shes", "xes", "sses")):
        return plural[:-2]
    return plural[:-1] if plural.endswith("s") else plural


def duration_text(seconds: float) -> str:
    """A duration as a person says it, in one or two units."""
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours = round(minutes / 60)
    return f"{hours} h" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def size_text(size: int) -> str:
    """A number of bytes as a person reads it: `512 bytes`, `3.4 MiB`."""
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 1 << power:
            return f"{size / (1 << power):.1f} {unit}"
    return counted(size, "bytes")


def in_mib(advance: Advance) -> Advance:
    """A counter of bytes that tells whole MiB, for stages of large files."""
    done = 0

    def count(size: int) -> None:
        nonlocal done
        before, done = done, done + size
        advance((done >> 20) - (before >> 20))

    return count


class SilentProgress:
    """Shows nothing: for tests, libraries and the processes other than the first."""

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
