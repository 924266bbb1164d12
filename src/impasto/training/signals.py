"""Ctrl-C and SIGTERM: between steps they ask to stop, elsewhere they stop at once.

On Windows, where nobody sends SIGTERM, Ctrl-Break and the closing of the window come as SIGBREAK.
"""

from __future__ import annotations

import _thread
import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

from impasto.errors import ImpastoError, Interrupted

STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)
)
"""What asks a run to stop, as far as this system has it."""

STOPPING = "Stopping after this step; again: now, without saving."


class StoppedBySignal(KeyboardInterrupt):
    """A signal came where work stops at once; raised in the main thread, as for Ctrl-C.

    Args:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def signal_of(stop: KeyboardInterrupt) -> int:
    """The signal that caused an exception."""
    return stop.number if isinstance(stop, StoppedBySignal) else int(signal.SIGINT)


def interrupted(stop: KeyboardInterrupt, message: str) -> Interrupted:
    """The end of a run that was stopped at once, in words."""
    return Interrupted(message, signal_of(stop))


@contextlib.contextmanager
def sigterm_stops() -> Iterator[None]:
    """Have SIGTERM and SIGBREAK end what runs as Ctrl-C does, with temporary files removed.

    Errors are reported within it, so that a second process's end does not cut the report short.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    others = [number for number in STOP_SIGNALS if number != signal.SIGINT]
    previous = {number: signal.signal(number, _stop) for number in others}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    if not _is_ending():
        raise StoppedBySignal(number)


def _is_ending() -> bool:
    """Whether an error is on its way to whoever reports it: that is not cut short by a signal.

    A launcher ends the other processes of a run as soon as one of them has ended, and what they
    have to say of it would be lost. A handler sees the exception that is being handled where the
    signal came.
    """
    return isinstance(sys.exception(), ImpastoError)


class StopRequest:
    """Hears signals while it is entered as a context.

    A signal stops at once, by `StoppedBySignal`; within `after_step` the first one is remembered
    and acknowledged, and the loop stops when it has saved.

    Args:
        acknowledge: Is given the words to show, on a separate thread: the main thread may be in
            the middle of a line.
    """

    def __init__(self, acknowledge: Callable[[str], None] | None = None) -> None:
        self.signal_number: int | None = None
        self._acknowledge = acknowledge or (lambda _: None)
        self._at_once = True
        self._message = STOPPING
        self._is_asked_now = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        previous, self._previous = self._previous, {}  # nobody is interrupted from now on
        for number, handler in previous.items():
            signal.signal(number, handler)

    def ask(self, *, now: bool) -> None:
        """Ask to stop from another thread, as a signal does from another process.

        Args:
            now: Whether to stop without waiting for the end of a step; what is not training stops
                at once in any case. A program that trains on another thread than its main one
                cannot be interrupted there: it stops after the step.
        """
        if now or self._at_once:
            self.signal_number = self.signal_number or signal.SIGINT
            if self._previous and not self._is_asked_now:
                self._is_asked_now = True  # a second one would cut the end short
                _interrupt_main_thread()
        elif self.signal_number is None:
            self.signal_number = signal.SIGINT
            self._acknowledge(self._message)

    @contextlib.contextmanager
    def after_step(self, message: str = STOPPING) -> Iterator[None]:
        """Only remember the first signal; `message` are shown when it comes."""
        self._message, self._at_once = message, False
        try:
            yield
        finally:
            self._at_once = True

    def _receive(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if number == signal.SIGTERM and _is_ending():
            return  # a person's Ctrl-C is heard: the state that is being saved may take long
        if self._at_once or (self.signal_number is not None and number == signal.SIGINT):
            raise StoppedBySignal(number)
        if self.signal_number is None:
            self.signal_number = number
            threading.Thread(target=self._acknowledge, args=(self._message,), daemon=True).start()


def _interrupt_main_thread() -> None:
    """Have the main thread get SIGINT; except on Windows also while it waits for something."""
    if sys.platform == "win32":
        _thread.interrupt_main()
    else:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
