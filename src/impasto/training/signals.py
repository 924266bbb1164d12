"""Ctrl-C and SIGTERM: during training they stop the run after the step, elsewhere at once.

Windows has no SIGTERM; there, Ctrl-Break and closing the window arrive as SIGBREAK.
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
"""The signals that ask a run to stop, of those that this operating system has."""

STOPPING = "Stopping after this step; Ctrl-C again stops at once, without saving."


class StoppedBySignal(KeyboardInterrupt):
    """Raised in the main thread by a signal that stops the work at once, as Ctrl-C does.

    Args:
        number: The number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def signal_of(stop: KeyboardInterrupt) -> int:
    """Return the number of the signal that caused an exception; SIGINT for a plain Ctrl-C."""
    return stop.number if isinstance(stop, StoppedBySignal) else int(signal.SIGINT)


def interrupted(stop: KeyboardInterrupt, message: str) -> Interrupted:
    """Return the error to report for a run that a signal stopped at once."""
    return Interrupted(message, signal_of(stop))


@contextlib.contextmanager
def sigterm_stops() -> Iterator[None]:
    """Make SIGTERM and SIGBREAK end the program like Ctrl-C, so that temporary files are removed.

    Report errors within this context: while an error is being reported, these signals are ignored,
    so that the report is not cut short when a launcher ends all processes. Does nothing outside the
    main thread.
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
    """Return whether an Impasto error is being handled; a signal must not cut its report short.

    A launcher ends the other processes of a run as soon as one of them has ended, and their error
    messages would be lost. `sys.exception()` in a signal handler is the exception that is being
    handled in the interrupted code.
    """
    return isinstance(sys.exception(), ImpastoError)


class StopRequest:
    """Handles stop signals while it is entered as a context.

    A signal stops at once, by raising `StoppedBySignal`. Within `after_step` the first one is only
    remembered and acknowledged, and the loop stops after the step, when it has saved. After a
    remembered signal, Ctrl-C stops at once.

    Args:
        acknowledge: Called with the message to show, on a separate thread, since the main thread
            may be in the middle of printing a line. None shows nothing.

    Attributes:
        signal_number: The signal that asked to stop; None until one arrives.
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
        previous, self._previous = self._previous, {}  # `ask` interrupts nothing from now on
        for number, handler in previous.items():
            signal.signal(number, handler)

    def ask(self, *, now: bool) -> None:
        """Ask to stop from another thread, as a signal does from another process.

        Args:
            now: Whether to stop without waiting for the end of the step; outside of training, work
                stops at once in any case. A program that trains on a thread other than its main
                one cannot be interrupted there: it stops after the step.
        """
        if now or self._at_once:
            self.signal_number = self.signal_number or signal.SIGINT
            if self._previous and not self._is_asked_now:
                self._is_asked_now = True  # a second interrupt would cut the cleanup short
                _interrupt_main_thread()
        elif self.signal_number is None:
            self.signal_number = signal.SIGINT
            self._acknowledge(self._message)

    @contextlib.contextmanager
    def after_step(self, message: str = STOPPING) -> Iterator[None]:
        """Within the context, only remember the first signal; show `message` when it arrives."""
        self._message, self._at_once = message, False
        try:
            yield
        finally:
            self._at_once = True

    def _receive(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if number == signal.SIGTERM and _is_ending():
            return  # Ctrl-C still works, since saving the state may take long
        if self._at_once or (self.signal_number is not None and number == signal.SIGINT):
            raise StoppedBySignal(number)
        if self.signal_number is None:
            self.signal_number = number
            threading.Thread(target=self._acknowledge, args=(self._message,), daemon=True).start()


def _interrupt_main_thread() -> None:
    """Send SIGINT to the main thread; except on Windows, this also ends a blocking wait."""
    if sys.platform == "win32":
        _thread.interrupt_main()
    else:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
