"""Uploads a run to its store while it trains, on a thread; errors of the store end no training."""

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
"""Seconds between two checks for changes in the working folder."""

PAUSES_S = (5.0, 15.0, 60.0, 180.0, 300.0)
"""Seconds until a store that failed is tried again; the last one is repeated."""

LAST_TRIES = 3
"""How often a store is tried at the end of a run before missing files are reported."""


class Mirror:
    """Keeps a run in a store up to date with its working folder, on a separate thread.

    Args:
        folder: The working folder.
        location: The run in the store.
        make_sender: Returns the sender, given a function that tells it whether to stop.
        note: Called once when the store fails, and once when it works again.
        pauses_s: Replaces `PAUSES_S`.
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
        """Start to upload the run to its store, on a thread."""
        self._thread.start()

    def finish(self, progress: Progress) -> None:
        """Upload all remaining files, with a progress bar, and end the thread.

        Raises:
            KeyboardInterrupt: The user pressed Ctrl-C; the present upload is not waited for.
            NotSentError: The store fails, even after retries.
            RunError: Another process has taken over the run.
        """
        try:
            size = sum((self._unsent() or {}).values())
            title = f"Sending the run to {shown(self._location)}"
            with progress.stage(title, size >> 20 or 1, "MiB") as advance:
                self._sender.advance = in_mib(advance)
                self._ending.set()
                self._woken.set()
                while not self._ended.wait(0.5):  # so that Ctrl-C works on Windows too
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
        """Check for changes until the end, then a few times more."""
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
        except Exception as error:  # also bugs, or the end would assume that all was sent
            self._fault = error
            raise
        finally:
            self._ended.set()

    def _try(self, *, all_of_it: bool) -> None:
        """Upload once; an error is stored, and reported the first time."""
        if isinstance(self._fault, RunError):
            return  # another process owns the run now
        try:
            self._sender.send(all_of_it=all_of_it)
        except SendingStopped:
            return
        except Exception as error:  # no error of a store may end the training
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
        """Return the files that are not in the store; None if the working folder cannot be read."""
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
    """Return an error as a sentence."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}."
    return str(error) or repr(error)
