"""`commands/` of a run directory: commands to a run while it trains.

A command is a small JSON file with a unique name. The trainer checks for them between two optimizer
steps, executes each, removes the file, and reports the result in `events.jsonl`. Files work where
signals do not: on Windows, from another machine with the same disk, from a browser.
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
    """A command that is waiting to be executed.

    Attributes:
        id: Its name, of letters, digits and `-`; also in the answer in `events.jsonl`.
        kind: The command.
        file: The file that holds it.
    """

    id: str
    kind: CommandName
    file: Path

    def take(self) -> bool:
        """Remove the command, so that it is executed once; return False if it was already taken."""
        try:
            self.file.unlink()
        except OSError:
            return False
        return True


def send_command(folder: Path, name: CommandName) -> Command:
    """Send a command to a run; returns at once.

    Args:
        folder: `commands/` of the run directory.
        name: The command.

    Raises:
        StorageError: It cannot be written.
    """
    identity = f"{time.time_ns() // 1_000_000}-{uuid.uuid4().hex[:8]}"
    file = folder / f"{identity}.json"
    with storage_errors.reported(folder):
        folder.mkdir(exist_ok=True)  # but not the run directory, if that is gone
    files.write_json(file, {"command": name, "sent_at": time.time()})
    return Command(identity, name, file)


def waiting_commands(folder: Path) -> list[Command]:
    """Return the commands that are still waiting, oldest first; invalid files are skipped."""
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".json"))
    except OSError:
        return []
    found = (_read(folder / name) for name in names if not name.startswith("."))
    return [command for command in found if command is not None]


def discard_commands(folder: Path) -> None:
    """Remove commands from before: they were sent to a process that is gone."""
    for command in waiting_commands(folder):
        command.take()
    with contextlib.suppress(OSError):  # missing, or contains other files
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
