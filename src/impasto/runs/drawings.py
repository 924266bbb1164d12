"""The folder of a draw worker: requests, their status, and their images.

`NAME/request.json`   the request (`draw_requests.py`), written by the client
`NAME/cancel`         tells the worker to skip the request, or to end it early
`NAME/status.json`    the progress, written by the worker
`NAME/0000-7.png`     the images, by position and seed; `grid.png` shows all of them
`worker.json`         the process of the present or last worker
`stop`                tells the worker to end

Worker and clients communicate through files only; no port is opened.
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
"""Final states of a drawing."""

_NAME = re.compile(r"\d{8}-\d{6}-(\d{3}-)?[0-9a-f]{6}", re.ASCII)  # the former names too
_IMAGE = re.compile(r"(\d{4}-\d{1,19}|grid)\.png", re.ASCII)


@dataclass(frozen=True)
class Drawing:
    """A request and its status.

    Attributes:
        path: Its directory.
    """

    path: Path

    @property
    def request_file(self) -> Path:
        """The file with the request."""
        return self.path / "request.json"

    @property
    def status_file(self) -> Path:
        """The file in which the worker reports the progress of the drawing."""
        return self.path / "status.json"

    @property
    def cancel_file(self) -> Path:
        """The file that tells the worker to skip this drawing, or to end it early."""
        return self.path / "cancel"

    @property
    def grid_file(self) -> Path:
        """The file with all images of the drawing in a grid."""
        return self.path / "grid.png"

    @property
    def when(self) -> str:
        """The time of the request, from the drawing's name."""
        day, clock = self.path.name.split("-")[:2]
        return f"{day[:4]}-{day[4:6]}-{day[6:]} {clock[:2]}:{clock[2:4]}"

    def request(self) -> DrawRequest:
        """Return the request in `request.json`.

        Raises:
            ConfigError: The file is missing, damaged, or its request is invalid.
        """
        try:
            values = parse_json(read_text(self.request_file), halves=True)  # names of files
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.request_file} cannot be read: {error}.") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{self.request_file} is not a JSON object.")
        return request_of(values)

    def status(self) -> dict[str, Any]:
        """Return the content of `status.json`, with the true state as `phase`.

        `waiting`, `loading`, `drawing`, `done`, `failed`, `cancelled`, or `killed` if the worker is
        gone without a final status.
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
        """Return an image by its name in a URL; None if there is none."""
        path = self.path / name
        fits = _IMAGE.fullmatch(name) is not None
        return path if fits and presence.is_file(path) and not path.is_symlink() else None

    def cancel(self) -> None:
        """Tell the worker to skip this drawing, or to end it early."""
        files.write_text(self.cancel_file, "")


@dataclass(frozen=True)
class DrawFolder:
    """The folder of a draw worker.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def stop_file(self) -> Path:
        """The file that tells the worker to end."""
        return self.path / "stop"

    @property
    def worker_file(self) -> Path:
        """The file that names the process of the worker."""
        return self.path / "worker.json"

    def ask(self, request: DrawRequest) -> Drawing:
        """Add a request to the folder, after all earlier ones.

        Raises:
            StorageError: The folder cannot be written.
        """
        with storage_errors.reported(self.path):
            drawing = Drawing(temporary_names.new_dated_folder(self.path))
        files.write_json(drawing.request_file, request.as_json())
        return drawing

    def find(self, name: str) -> Drawing | None:
        """Return the drawing with a name; None if there is none."""
        drawing = Drawing(self.path / name)
        is_ours = _NAME.fullmatch(name) is not None and not presence.is_link(drawing.path)
        return drawing if is_ours and presence.is_file(drawing.request_file) else None

    def all(self) -> list[Drawing]:
        """Return all drawings, the oldest first."""
        return self._all_but(())

    def waiting(self, over: set[str] | None = None) -> list[Drawing]:
        """Return the drawings that no worker has started, the oldest first.

        Args:
            over: Names of drawings that are known to have ended, whose status is not read again;
                more are added as they are found.
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
        """Whether a worker is drawing or waits for requests."""
        return presence.is_dir(self.path) and lock_holder(self.path) is not None

    def worker_token(self) -> str:
        """Return the token (`owners.py`) of the last worker's process; empty if there was none."""
        return str((read_object(self.worker_file) or {}).get("process", ""))

    def stop_worker(self) -> None:
        """Tell the worker to end after its present drawing."""
        files.write_text(self.stop_file, "")
