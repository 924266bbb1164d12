"""The page "Queue": the jobs in order with their states, the devices, and changes to both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from impasto import files
from impasto.config.load import build_run_config
from impasto.config.setting_files import require_unescaped_paths
from impasto.errors import ConfigError, ImpastoError, RunError
from impasto.parsing import parse_toml, read_text
from impasto.runs.queue import Queue
from impasto.runs.queue_devices import ask_runner_to_stop, device_name, is_device_number, runner_of
from impasto.runs.queue_settings import output_of
from impasto.studio.core import Studio
from impasto.studio.forms import read_form, whole_number
from impasto.studio.pages.queue_views import is_starting, queue_view

_LARGEST_BYTES = 1 << 20
_LARGEST_NUMBER = 10**9 - 1
_FIELDS = ("file", "text", "name")

CHANGES: dict[str, tuple[Callable[[Queue, int], Any], str]] = {
    "first": (lambda queue, job: queue.move(job, "first"), "Job {job} is now the first."),
    "up": (lambda queue, job: queue.move(job, "up"), "Job {job} has moved up."),
    "down": (lambda queue, job: queue.move(job, "down"), "Job {job} has moved down."),
    "last": (lambda queue, job: queue.move(job, "last"), "Job {job} is now the last."),
    "pause": (Queue.pause, "Job {job} is paused, or will be after its current step."),
    "continue": (Queue.go_on, "Job {job} is waiting for its turn."),
    "retry": (Queue.retry, "Job {job} is waiting for its turn."),
    "repeat": (Queue.repeat, "A new job repeats job {job}."),
    "remove": (Queue.remove, "Job {job} was removed. Its run directory, if any, is kept."),
}
"""The actions of a job's buttons, each with the sentence shown afterwards."""


def routes(studio: Studio) -> list[BaseRoute]:
    """Return the routes of this page."""
    pages = QueuePages(studio)
    return [
        Route("/queue", pages.page),
        Route("/queue/add", pages.add, methods=["POST"]),
        Route("/queue/start", pages.start, methods=["POST"]),
        Route("/queue/stop/{device}", pages.stop, methods=["POST"]),
        Route("/queue/jobs/{job}/{change}", pages.change, methods=["POST"]),
        Route("/parts/queue", pages.fragment),
    ]


@dataclass(frozen=True)
class QueuePages:
    """Answers requests for the queue.

    Attributes:
        studio: The state of the studio.
    """

    studio: Studio

    async def page(self, _: Request) -> Response:
        """Show the queue, and the form that adds a job."""
        return await self._shown({}, {})

    async def fragment(self, _: Request) -> Response:
        """Show only the jobs and devices, a part that the page polls."""
        view = await asyncio.to_thread(queue_view, self.studio)
        return self.studio.page("queue_jobs.html.j2", **view)

    async def change(self, request: Request) -> Response:
        """Move, pause, continue, retry, repeat or remove a job."""
        job, name = request.path_params["job"], request.path_params["change"]
        number = whole_number(job, _LARGEST_NUMBER)
        if name not in CHANGES or number is None:
            raise HTTPException(404, "There is no such job or action.")
        change, said = CHANGES[name]
        try:
            await asyncio.to_thread(change, Queue(self.studio.queue), number)
        except (RunError, ConfigError) as error:
            raise HTTPException(409, str(error)) from error
        return self._said(said.format(job=number))

    async def start(self, request: Request) -> Response:
        """Start a process that works through the queue on a device."""
        form = await read_form(request)
        number = whole_number(str(form.get("device", "0")), _LARGEST_NUMBER)
        if number is None or not is_device_number(number):
            raise HTTPException(400, "The device must be a number: 0 is the first GPU.")
        try:
            name = await asyncio.to_thread(self._start, number)
        except RunError as error:
            raise HTTPException(409, str(error)) from error
        if "hx-request" not in request.headers:
            return RedirectResponse("/queue", 303)
        return self._said(f"A process is starting on device {name}; that takes a few seconds.")

    async def stop(self, request: Request) -> Response:
        """Ask the process that works on a device to stop after its current step."""
        device = request.path_params["device"]
        try:
            await asyncio.to_thread(ask_runner_to_stop, self.studio.queue, device)
        except RunError as error:
            raise HTTPException(409, str(error)) from error
        return self._said(f"The process on device {device} will stop after its current step.")

    async def add(self, request: Request) -> Response:
        """Add a job for a settings file, given by its path or its text."""
        form = await read_form(request, most_bytes=_LARGEST_BYTES)
        given = {name: str(form.get(name, "")) for name in _FIELDS}
        paused = form.get("paused") is not None
        faults = await asyncio.to_thread(self._add, given, paused=paused)
        if faults:
            return await self._shown(given | ({"paused": "1"} if paused else {}), faults)
        return RedirectResponse("/queue", 303)

    async def _shown(self, given: dict[str, str], faults: dict[str, str]) -> Response:
        view = await asyncio.to_thread(queue_view, self.studio)
        folders = [str(folder) for folder in self.studio.folders.runs]
        return self.studio.page(
            "queue.html.j2",
            422 if faults else 200,
            given={**dict.fromkeys((*_FIELDS, "paused"), ""), **given},
            faults={**dict.fromkeys(_FIELDS, ""), **faults},
            folders=folders,
            begins=str(Path.cwd()),
            **view,
        )

    def _said(self, message: str) -> Response:
        """Return a sentence for the line above the list, and make the page reload the list."""
        answer = self.studio.page("queue_said.html.j2", message=message)
        answer.headers["hx-trigger"] = "queue-changed"
        return answer

    def _start(self, number: int) -> str:
        """Start the process for a device, and return the name of the device.

        Raises:
            RunError: The device is in use or does not exist, or its process is being started.
        """
        name, folder = device_name(number), self.studio.queue
        holder = runner_of(folder, name)
        if holder is not None:
            raise RunError(f"Device {name} is already in use by {holder.description}.")
        if is_starting(self.studio, number):
            raise RunError(f"The process for device {name} is already being started.")
        arguments = ["queue", "run", "--queue", str(folder), "--device", str(number), "--wait"]
        self.studio.tasks.start(arguments, f"Work on device {name}", "/queue")
        return name

    def _add(self, given: dict[str, str], *, paused: bool) -> dict[str, str]:
        """Add a job; return the fault by its field, or an empty dict if there is none."""
        file, text = given["file"].strip(), given["text"]
        if bool(file) == bool(text.strip()):
            return {
                "file": "Enter either the path of a settings file, or its text below, but not both."
            }
        field = "file" if file else "text"
        try:
            content = self._content_of(file) if file else text.replace("\r\n", "\n")
            self._require_fitting(content)
            name = given["name"].strip() or (
                Path(file).stem if file else Path(output_of(content)).name
            )
            Queue(self.studio.queue).add(content, name, Path.cwd(), paused=paused)
        except ImpastoError as error:
            return {field: str(error)}
        return {}

    def _content_of(self, name: str) -> str:
        """Return the text of a settings file below a folder of runs.

        Raises:
            RunError: There is no such file, or it is not a settings file.
        """
        for folder in self.studio.folders.runs:
            try:
                path = folder / name
                if not files.is_inside(path, folder) or not path.is_file():
                    continue
                if path.suffix.lower() != ".toml" or path.stat().st_size > _LARGEST_BYTES:
                    raise RunError(
                        f"{name} is not a settings file: it must end in .toml, with at most 1 MiB."
                    )
                return read_text(path)
            except (OSError, ValueError) as error:
                raise RunError(f"{name[:200]} cannot be read: {error}.") from error
        raise RunError(f"There is no file {name[:200]} in the folders of runs.")

    def _require_fitting(self, text: str) -> None:
        """Check that settings are valid, and that the studio will show their run.

        Raises:
            ImpastoError: The settings are invalid, or their run directory is not shown.
        """
        output = Path.cwd() / output_of(text)
        values = parse_toml(text)
        require_unescaped_paths(values, "The settings")
        build_run_config(values, source="The settings")
        if not any(files.is_inside(output, folder) for folder in self.studio.folders.runs):
            raise RunError(
                f"output_dir is {output}, which is outside the folders of runs that this studio "
                f"shows. Choose one in {' or '.join(map(str, self.studio.folders.runs))}."
            )
