"""Receives commands, as files in the run directory (`runs/commands.py`), while a run trains."""

from __future__ import annotations

import threading

from impasto.runs import RunDirectory
from impasto.runs.commands import Command, discard_commands, waiting_commands
from impasto.runs.events import EventLog
from impasto.training.signals import StopRequest

LOOK_EVERY_S = 1.0
_JOINED_FOR_S = 5.0


class CommandListener:
    """Polls for commands on a separate thread, while it is entered as a context.

    It handles "stop" and "stop-now" itself, as a signal would, so that a run also stops while it
    loads or encodes. Other commands wait until the training loop takes them after a step.

    Args:
        run: The run directory, which this process has locked.
        stop: Told to stop by a stop command.
        log: The event log that answers are written to.
        every_s: Seconds between two polls.
    """

    def __init__(
        self, run: RunDirectory, stop: StopRequest, log: EventLog, every_s: float = LOOK_EVERY_S
    ) -> None:
        self._folder, self._stop, self._log = run.commands, stop, log
        self._every_s = every_s
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._taken: list[Command] = []
        self._in_hand: dict[str, Command] = {}
        self._thread = threading.Thread(target=self._listen, name="commands", daemon=True)

    def __enter__(self) -> CommandListener:
        discard_commands(self._folder)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(_JOINED_FOR_S)
        self.take()
        for command in list(self._in_hand.values()):
            self.answer(command, "the run ended before it was carried out")

    def take(self) -> list[Command]:
        """Return the commands that arrived since the last call; the caller must answer each."""
        with self._lock:
            taken, self._taken = self._taken, []
        self._in_hand |= {command.id: command for command in taken}
        return taken

    def answer(self, command: Command, text: str) -> None:
        """Write the outcome of a command to the event log."""
        self._in_hand.pop(command.id, None)
        self._log.add("command", id=command.id, command=command.kind, text=text)

    def _listen(self) -> None:
        while not self._ended.wait(self._every_s):
            for command in waiting_commands(self._folder):
                if self._ended.is_set() or not command.take():
                    continue
                if command.kind in ("stop", "stop-now"):
                    self.answer(command, "stopping")
                    self._stop.ask(now=command.kind == "stop-now")
                else:
                    with self._lock:
                        self._taken.append(command)
