"""The folder of a draw worker: requests, what has become of them, and their images.

`NAME/request.json`   what is asked (`draw_requests.py`); whoever asks writes it
`NAME/cancel`         asks that it is not drawn, or not to its end
`NAME/status.json`    how far it is: written by the worker
`NAME/0000-7.png`     the images, by place and seed; `grid.png` has all of them
`worker.json`         the process of the worker that is or was at work last
`stop`                asks the worker to end

Files are all that passes between a worker and whoever asks it; no port is opened.
"""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impasto import files, presence, storage_errors, temporary_names
from impasto.errors import ConfigError
from impasto.locks import lock_holder
from impasto.parsing import parse_json, read_object, read_text
from impasto.runs.draw_reading import request_of
from impasto.runs.draw_requests import DrawRequest

ENDED = ("done", "failed", "cancelled", "killed")
"""States that do not change any more."""

_NAME = re.compile(r"\d{8}-\d{6}-(\d{3}-)?[0-9a-f]{6}", re.ASCII)  # the former names too
_IMAGE = re.compile(r"(\d{4}-\d{1,19}|grid)\.png", re.ASCII)


@dataclass(frozen=True)
class Drawing:
    """A request and what has become of it.

    Attributes:
        path: Its directory.
    """

    path: Path

    @property
    def request_file(self) -> Path:
        """The file with what is to be drawn."""
        return self.path / "request.json"

    @property
    def status_file(self) -> Path:
        """The file in which the worker says how far the drawing is."""
        return self.path / "status.json"

    @property
    def cancel_file(self) -> Path:
        """The file that asks the worker to leave this drawing, or to end it early."""
        return self.path / "cancel"

    @property
    def grid_file(self) -> Path:
        """The file that has all images of the drawing in one."""
        return self.path / "grid.png"

    @property
    def when(self) -> str:
        """The moment at which it was asked for, as its name says."""
        day, clock = self.path.name.split("-")[:2]
        return f"{day[:4]}-{day[4:6]}-{day[6:]} {clock[:2]}:{clock[2:4]}"

    def request(self) -> DrawRequest:
        """What is to be drawn, as `request.json` says.

        Raises:
            ConfigError: The file is missing, damaged, or asks for what cannot be drawn.
        """
        try:
            values = parse_json(read_text(self.request_file), halves=True)  # names of files
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.request_file} cannot be read: {error}.") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{self.request_file} is no JSON object.")
        return request_of(values)

    def status(self) -> dict[str, Any]:
        """What `status.json` says, with the true state as `phase`.

        `waiting`, `loading`, `drawing`, `done`, `failed`, `cancelled`, or `killed` where the
        worker is gone without a word.
        """
        found = read_object(self.status_file) or {}
        phase = found.get("phase")
        if phase in ENDED:
            return found
        if phase in ("loading", "drawing"):
            holder = lock_holder(self.path.parent)
            owner = None if holder is None else holder.owner
            if owner is None or owner.token != found.get("process"):
                found["phase"] = "killed"
            return found
        return {"phase": "cancelled" if presence.exists(self.cancel_file) else "waiting"}

    def image(self, name: str) -> Path | None:
        """An image by the name that an address has; None where there is none."""
        path = self.path / name
        fits = _IMAGE.fullmatch(name) is not None
        return path if fits and presence.is_file(path) and not path.is_symlink() else None

    def cancel(self) -> None:
        """Ask the worker to leave this drawing, or to end it early."""
        files.write_text(self.cancel_file, "")


@dataclass(frozen=True)
class DrawFolder:
    """The folder of a worker.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def stop_file(self) -> Path:
        """The file that asks the worker to end."""
        return self.path / "stop"

    @property
    def worker_file(self) -> Path:
        """The file that says which process is the worker."""
        return self.path / "worker.json"

    def ask(self, request: DrawRequest) -> Drawing:
        """Put a request where the worker finds it, behind all that was asked before.

        Raises:
            StorageError: The folder cannot be written.
        """
        with storage_errors.reported(self.path):
            drawing = Drawing(temporary_names.new_dated_folder(self.path))
        files.write_json(drawing.request_file, request.as_json())
        return drawing

    def find(self, name: str) -> Drawing | None:
        """The drawing of a name; None where there is none."""
        drawing = Drawing(self.path / name)
        is_ours = _NAME.fullmatch(name) is not None and not presence.is_link(drawing.path)
        return drawing if is_ours and presence.is_file(drawing.request_file) else None

    def all(self) -> list[Drawing]:
        """All drawings, the oldest first."""
        return self._all_but(())

    def waiting(self, over: set[str] | None = None) -> list[Drawing]:
        """The drawings that nobody has begun, the oldest first.

        Args:
            over: Names of drawings that are known to have ended, which are not looked at again;
                those that are found to have are added.
        """
        over, found = set() if over is None else over, []
        for drawing in self._all_but(over):
            phase = drawing.status()["phase"]
            if phase == "waiting":
                found.append(drawing)
            elif phase in ENDED:
                over.add(drawing.path.name)
        return found

    def _all_but(self, names: Container[str]) -> list[Drawing]:
        try:
            listed = sorted(path.name for path in self.path.iterdir())
        except OSError:
            return []
        found = (self.find(name) for name in listed if name not in names)
        return [drawing for drawing in found if drawing is not None]

    @property
    def has_worker(self) -> bool:
        """Whether a worker is at work or waits for requests."""
        return presence.is_dir(self.path) and lock_holder(self.path) is not None

    def worker_token(self) -> str:
        """The process that was the worker last, as `owners.py` names it; empty if none was."""
        return str((read_object(self.worker_file) or {}).get("process", ""))

    def stop_worker(self) -> None:
        """Ask the worker to end after what it draws now."""
        files.write_text(self.stop_file, "")
