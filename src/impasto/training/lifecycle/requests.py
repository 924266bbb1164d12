"""What a run is asked to do while it trains, by signals and by commands, on all its processes."""

from __future__ import annotations

from collections.abc import Callable, Set

import torch
from accelerate import Accelerator

from impasto.runs.commands import COMMANDS, Command, CommandName
from impasto.training.monitoring.command_listener import CommandListener
from impasto.training.signals import StopRequest


class Requests:
    """Tells the loop what it is asked for after a step; every process is told the same.

    One process hears at once. Several exchange a number for it, which they do where a line of
    metrics is due: there they wait for each other anyway.

    Args:
        stop: Hears signals.
        commands: Hears commands; None on all processes but the first.
        accelerator: The processes.
        is_log_step: Whether a line of metrics is due after so many steps.
        missing_for: What a command needs that this run has not, as a sentence; empty if nothing.
    """

    def __init__(
        self,
        stop: StopRequest,
        commands: CommandListener | None,
        accelerator: Accelerator,
        is_log_step: Callable[[int], bool],
        missing_for: Callable[[CommandName], str],
    ) -> None:
        self._stop, self._commands, self._accelerator = stop, commands, accelerator
        self._is_log_step, self._missing_for = is_log_step, missing_for
        self._taken: list[Command] = []

    def stop_signal(self, done: int) -> int | None:
        """The signal that any process got, if one did."""
        return self._greatest_of_all(self._stop.signal_number or 0, done) or None

    def asked(self, done: int) -> Set[CommandName]:
        """The commands that are to be done now."""
        if self._commands is not None and self._agrees_at(done):
            self._taken = self._commands.take()
        names = {taken.kind for taken in self._taken}
        bits = sum(1 << bit for bit, name in enumerate(COMMANDS) if name in names)
        agreed = self._greatest_of_all(bits, done)
        return {name for bit, name in enumerate(COMMANDS) if agreed >> bit & 1}

    def answer(self, done: int) -> None:
        """Say what became of the commands of now."""
        taken, self._taken = self._taken, []
        if self._commands is not None:
            for asked in taken:
                missing = self._missing_for(asked.kind)
                self._commands.answer(asked, missing or f"done after step {done}")

    def _agrees_at(self, done: int) -> bool:
        return self._accelerator.num_processes == 1 or self._is_log_step(done)

    def _greatest_of_all(self, mine: int, done: int) -> int:
        """The greatest number of all processes; 0 where they do not exchange any."""
        if not self._agrees_at(done):
            return 0
        if self._accelerator.num_processes == 1:
            return mine
        number = torch.tensor([mine], device=self._accelerator.device)
        return int(self._accelerator.gather(number).max())
