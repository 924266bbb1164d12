"""The folder of drawings, and the worker that draws in it: started when it is needed."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from impasto import files
from impasto.errors import RunError
from impasto.runs.draw_requests import DrawRequest
from impasto.runs.drawings import ENDED, DrawFolder, Drawing
from impasto.studio.tasks import Tasks

VERB = "draw-worker"
_NEWEST = 20  # of the newest ones: a worker that is starting is among them


@dataclass(frozen=True)
class DrawingDesk:
    """Takes requests and sees to it that somebody draws them.

    Attributes:
        folder: Where they are.
        tasks: Starts the worker.
    """

    folder: DrawFolder
    tasks: Tasks

    def ask(self, request: DrawRequest) -> Drawing:
        """Put a request in the queue, and start the worker if there is none.

        Raises:
            StorageError: The folder cannot be written.
        """
        drawing = self.folder.ask(request)
        self.start()
        return drawing

    def start(self) -> None:
        """Start the worker, unless it is at work or being started."""
        if not self.has_worker():
            arguments = (VERB, self.folder.path.resolve())
            self.tasks.start(arguments, "Draw what is asked for on the page Draw", "/draw")

    def has_worker(self) -> bool:
        """Whether a worker is at work, waits for requests, or is being started."""
        return self.folder.has_worker or self.is_starting()

    def is_starting(self) -> bool:
        """Whether a worker was started that has not taken the folder yet."""
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
            RunError: It is not ended.
        """
        if drawing.status()["phase"] not in ENDED:
            raise RunError("It is being drawn, or waits for that. Cancel it first.")
        files.remove_folder(drawing.path)
