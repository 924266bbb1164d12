"""The folder of drawings, and its worker, which is started when needed."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from impasto import files
from impasto.errors import RunError
from impasto.runs.draw_requests import DrawRequest
from impasto.runs.drawings import ENDED, DrawFolder, Drawing
from impasto.studio.tasks import Tasks

VERB = "draw-worker"
_NEWEST = 20  # newest tasks to check: a worker that is starting is among them


@dataclass(frozen=True)
class DrawingDesk:
    """Takes drawing requests, and makes sure that a worker draws them.

    Attributes:
        folder: The folder of requests and drawings.
        tasks: Starts the worker.
    """

    folder: DrawFolder
    tasks: Tasks

    def ask(self, request: DrawRequest) -> Drawing:
        """Queue a request, and start the worker if none is running.

        Raises:
            StorageError: The folder cannot be written.
        """
        drawing = self.folder.ask(request)
        self.start()
        return drawing

    def start(self) -> None:
        """Start the worker, unless it is running or being started."""
        if not self.has_worker():
            arguments = (VERB, self.folder.path.resolve())
            self.tasks.start(arguments, "Draw the images requested on the page Draw", "/draw")

    def has_worker(self) -> bool:
        """Return whether a worker is drawing, waiting for requests, or being started."""
        return self.folder.has_worker or self.is_starting()

    def is_starting(self) -> bool:
        """Return whether a worker was started that has not taken the lock of the folder yet."""
        ended = self.folder.worker_token()
        for task in itertools.islice(self.tasks.newest(VERB), _NEWEST):
            process = task.process()
            is_another = process is None or process.token != ended
            if self.tasks.state_of(task).is_alive and is_another:
                return True
        return False

    def remove(self, drawing: Drawing) -> None:
        """Delete a drawing and its images.

        Raises:
            RunError: It has not ended yet.
        """
        if drawing.status()["phase"] not in ENDED:
            raise RunError("This drawing is in progress or waiting. Cancel it first.")
        files.remove_folder(drawing.path)
