"""Sends a run to its store while it trains, on a thread; a store that fails ends no training."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from impasto.errors import NotSentError, RunError
from impasto.invocation import command
from impasto.progress import Progress, in_mib
from impasto.remote_paths import shown
from impasto.runs.remote.sending import Sender, SendingStopped, unsent_text

LOOK_EVERY_S = 5.0
"""Seconds between two looks for what is new in the working folder."""

PAUSES_S = (5.0, 15.0, 60.0, 180.0, 300.0)
"""Seconds until a store that failed is tried again, the last one over and over."""

LAST_TRIES = 3
"""How often a store is tried at the end of a run before what is missing is named."""


class Mirror:
    """Keeps a run in a store like its working folder, on a separate thread.

    Args:
        folder: The working folder.
        location: The run in the store.
        make_sender: Makes what sends, given whether to stop.
        note: Is told once when the store fails, and once when it answers again.
        pauses_s: As `PAUSES_S`, which it is if not given.
    """

    def __init__(
        self,
        folder: Path,
        location: Path,
        make_sender: Callable[[Callable[[], bool]], Sender],
        note: Callable[[str], None],
        pauses_s: tuple[float, ...] | None = None,
    ) -> None:
        self._folder, self._location, self._note = folder, location, note
        self._pauses_s = PAUSES_S if pauses_s is None else pauses_s
        self._is_stopped = False
        self._sender = make_sender(lambda: self._is_stopped)
        self._ending, self._woken, self._ended = (threading.Event() for _ in range(3))
        self._failures = 0
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="sending", daemon=True)

    def start(self) -> None:
        """Begin to send what the run writes to its store, in a thread."""
        self._thread.start()

    def finish(self, progress: Progress) -> None:
        """Send all that is left, which a bar shows, and end the thread.

        Raises:
            KeyboardInterrupt: As it comes; what is being sent is left as it is.
            NotSentError: The store fails, also when it is tried again.
            RunError: Another process has taken the run over.
        """
        try:
            size = sum((self._unsent() or {}).values())
            title = f"Sending the run to {shown(self._location)}"
            with progress.stage(title, size >> 20 or 1, "MiB") as advance:
                self._sender.advance = in_mib(advance)
                self._ending.set()
                self._woken.set()
                while not self._ended.wait(0.5):  # so that Ctrl-C is heard on Windows too
                    pass
        except BaseException:
            self._is_stopped = True
            self._note(self._message_at_end("It was stopped before all was sent."))
            raise
        if isinstance(self._fault, RunError):
            raise self._fault
        if self._fault is not None:
            raise NotSentError(
                self._message_at_end(_message(self._fault)), self._folder
            ) from self._fault

    def _work(self) -> None:
        """Look for what is new until the end; then a few times more."""
        try:
            while not self._ending.is_set():
                self._try(all_of_it=False)
                self._wait(LOOK_EVERY_S if self._fault is None else self._pause())
            for number in range(LAST_TRIES):
                self._try(all_of_it=True)
                if self._fault is None or isinstance(self._fault, RunError) or self._is_stopped:
                    return
                if number < LAST_TRIES - 1:
                    threading.Event().wait(self._pauses_s[0])
        except Exception as error:  # a fault of ours too, or the end would take all for sent
            self._fault = error
            raise
        finally:
            self._ended.set()

    def _try(self, *, all_of_it: bool) -> None:
        """Send once; whatever goes wrong is kept, and told the first time."""
        if isinstance(self._fault, RunError):
            return  # the run is another process's now
        try:
            self._sender.send(all_of_it=all_of_it)
        except SendingStopped:
            return
        except Exception as error:  # no fault of a store may end the training
            self._failures += 1
            if self._fault is None and not self._ending.is_set():
                self._note(
                    f"Warning: the run cannot be sent to {shown(self._location)} just now: "
                    f"{_message(error)} Training goes on, and it is tried again."
                )
            self._fault = error
        else:
            if self._fault is not None and not self._ending.is_set():
                self._note(f"The run is being sent to {shown(self._location)} again.")
            self._fault, self._failures = None, 0

    def _pause(self) -> float:
        return self._pauses_s[min(self._failures, len(self._pauses_s)) - 1]

    def _wait(self, seconds: float) -> None:
        self._woken.wait(seconds)
        self._woken.clear()

    def _unsent(self) -> dict[str, int] | None:
        """What is not in the store; None where the working folder cannot be read just now."""
        try:
            return self._sender.unsent()
        except OSError:
            return None

    def _message_at_end(self, why: str) -> str:
        unsent = self._unsent()
        what = (
            f"What is missing in {shown(self._location)} is not known"
            if unsent is None
            else unsent_text(unsent, self._location)
        )
        return (
            f"{what}: {why} All of it is in {self._folder}. Once "
            f"the store can be used, send it with: {command('send', shown(self._location))}"
        )


def _message(error: BaseException) -> str:
    """What went wrong, as a sentence."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}."
    return str(error) or repr(error)
