"""`commands/` of a run directory: what a run is asked to do while it trains.

A command is a small JSON file with a unique name. The trainer looks for them between two
optimizer steps, does what it is asked, removes the file, and says in `events.jsonl` what became of
it. Files serve where signals do not: on Windows, on another machine with the same disk, from a
browser.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from impasto import files, storage_errors
from impasto.parsing import parse_json, read_text

CommandName = Literal["preview", "validate", "save", "stop", "stop-now"]
COMMANDS: dict[CommandName, str] = {
    "preview": "draw previews now",
    "validate": "measure the validation loss now",
    "save": "save a training state now",
    "stop": "save a training state after this step and stop",
    "stop-now": "stop without saving",
}
"""Each command, and what the run will do."""

_LARGEST_BYTES = 4096


@dataclass(frozen=True)
class Command:
    """A command that waits to be taken.

    Attributes:
        id: Its name, of letters, digits and `-`; the answer in `events.jsonl` has it too.
        kind: What is asked for.
        file: Where it is written.
    """

    id: str
    kind: CommandName
    file: Path

    def take(self) -> bool:
        """Remove the command, so that it is done once; False if somebody was faster."""
        try:
            self.file.unlink()
        except OSError:
            return False
        return True


def send_command(folder: Path, name: CommandName) -> Command:
    """Ask a run for something; returns at once.

    Args:
        folder: `commands/` of the run directory.
        name: What is asked for.

    Raises:
        StorageError: It cannot be written.
    """
    identity = f"{time.time_ns() // 1_000_000}-{uuid.uuid4().hex[:8]}"
    file = folder / f"{identity}.json"
    with storage_errors.reported(folder):
        folder.mkdir(exist_ok=True)  # not the run directory, if that is gone
    files.write_json(file, {"command": name, "sent_at": time.time()})
    return Command(identity, name, file)


def waiting_commands(folder: Path) -> list[Command]:
    """The commands that nobody has taken, oldest first; what is none is skipped."""
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".json"))
    except OSError:
        return []
    found = (_read(folder / name) for name in names if not name.startswith("."))
    return [command for command in found if command is not None]


def discard_commands(folder: Path) -> None:
    """Forget the commands of before: they were meant for a process that is gone."""
    for command in waiting_commands(folder):
        command.take()
    with contextlib.suppress(OSError):  # it is not there, or holds what is not ours
        folder.rmdir()


def _read(file: Path) -> Command | None:
    try:
        if file.stat().st_size > _LARGEST_BYTES:
            return None
        said = parse_json(read_text(file))
        name = said["command"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Command(file.stem, name, file) if name in get_args(CommandName) else None
