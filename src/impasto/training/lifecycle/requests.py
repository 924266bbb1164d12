"""Requests to a running training, by signals and commands, agreed between its processes."""

from __future__ import annotations

from collections.abc import Callable, Set

import torch
from accelerate import Accelerator

from impasto.runs.commands import COMMANDS, Command, CommandName
from impasto.training.monitoring.command_listener import CommandListener
from impasto.training.signals import StopRequest


class Requests:
    """Reports requests to the loop after a step, with the same answer on all processes.

    A single process reacts after the next step. Several have to exchange a number to agree, and do
    so only when a line of metrics is due, since they wait for each other there anyway.

    Args:
        stop: Receives signals.
        commands: Receives commands; None on all processes but the main one.
        accelerator: The processes.
        is_log_step: Returns whether a line of metrics is due after this many steps.
        missing_for: Returns why this run cannot carry out a command; an empty string if it can.
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
        """Return the signal that any process received, or None."""
        return self._greatest_of_all(self._stop.signal_number or 0, done) or None

    def asked(self, done: int) -> Set[CommandName]:
        """Return the commands to carry out after `done` steps."""
        if self._commands is not None and self._agrees_at(done):
            self._taken = self._commands.take()
        names = {taken.kind for taken in self._taken}
        bits = sum(1 << bit for bit, name in enumerate(COMMANDS) if name in names)
        agreed = self._greatest_of_all(bits, done)
        return {name for bit, name in enumerate(COMMANDS) if agreed >> bit & 1}

    def answer(self, done: int) -> None:
        """Report the outcome of the commands that `asked` returned."""
        taken, self._taken = self._taken, []
        if self._commands is not None:
            for asked in taken:
                missing = self._missing_for(asked.kind)
                self._commands.answer(asked, missing or f"done after step {done}")

    def _agrees_at(self, done: int) -> bool:
        return self._accelerator.num_processes == 1 or self._is_log_step(done)

    def _greatest_of_all(self, mine: int, done: int) -> int:
        """Return the greatest number of all processes; 0 at steps without an exchange."""
        if not self._agrees_at(done):
            return 0
        if self._accelerator.num_processes == 1:
            return mine
        number = torch.tensor([mine], device=self._accelerator.device)
        return int(self._accelerator.gather(number).max())
