"""The pages "Runs" and "Run": the states of runs, their live updates, and requests to them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, get_args

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import BaseRoute, Route

from impasto.parsing import printable
from impasto.runs import RunDirectory, RunState, step_name
from impasto.runs.commands import CommandName, send_command
from impasto.runs.lines import size_of
from impasto.studio.core import Studio
from impasto.studio.curves import SKETCHED_FROM
from impasto.studio.folders import file_of
from impasto.studio.forms import whole_number
from impasto.studio.kept_curves import KeptCurves
from impasto.studio.pages.learning_views import image_loss_view, learning_view
from impasto.studio.pages.run_views import ASKS, run_page, run_rows, samples_view, state_view
from impasto.studio.verbs import in_own_thread, run_verb
from impasto.studio.watching import RunWatch

_LARGEST_STEP = 10**12
_IMAGES = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp"}


def routes(studio: Studio) -> list[BaseRoute]:
    """Return the routes of these pages."""
    pages = RunPages(studio)
    return [
        Route("/", pages.start_page),
        Route("/parts/runs", pages.runs_fragment),
        Route("/runs/{run}", pages.run_page),
        Route("/runs/{run}/curves", pages.curves),
        Route("/runs/{run}/learning", pages.learning),
        Route("/runs/{run}/images", pages.images),
        Route("/runs/{run}/stream", pages.stream),
        Route("/runs/{run}/report", pages.report),
        Route("/runs/{run}/samples", pages.samples),
        Route("/runs/{run}/samples/{step}/{file}", pages.sample),
        Route("/runs/{run}/ask/{command}", pages.command, methods=["POST"]),
        Route("/runs/{run}/resume", pages.resume, methods=["POST"]),
    ]


@dataclass(frozen=True)
class RunPages:
    """Answers requests for runs.

    Attributes:
        studio: The state of the studio.
        reading: Held while every line of a large file is read, which takes seconds and memory: a
            page that compares 24 runs requests all of them at once.
        reading_losses: Held while image losses are read, for the same reason.
        kept: The cache of curves.
    """

    studio: Studio
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)
    reading_losses: asyncio.Lock = field(default_factory=asyncio.Lock)
    kept: KeptCurves = field(default_factory=KeptCurves)

    async def run_of(self, request: Request) -> RunDirectory:
        """Return the run that an address names.

        Raises:
            HTTPException: 404 if there is none.
        """
        run = await asyncio.to_thread(self.studio.folders.run_of, request.path_params["run"])
        if run is None:
            raise HTTPException(404, "This run does not exist: it was removed, renamed or moved.")
        return run

    async def start_page(self, _: Request) -> Response:
        """Show the start page with all runs and their states."""
        return self.studio.page(
            "start.html.j2", runs=await self._rows(), folders=self._folder_names()
        )

    async def runs_fragment(self, _: Request) -> Response:
        """Show only the list of runs, a part that the page polls."""
        return self.studio.page(
            "runs.html.j2", runs=await self._rows(), folders=self._folder_names()
        )

    async def run_page(self, request: Request) -> Response:
        """Show the page of a run."""
        run = await self.run_of(request)
        content = await asyncio.to_thread(run_page, run, self.studio.run_processes)
        return self.studio.page("run.html.j2", name=self.studio.folders.name_of(run), **content)

    async def curves(self, request: Request) -> Response:
        """Return the curves as JSON; with `exact=1`, from every line of a large file.

        The header `x-curves` is `exact` if every line was read, so that no second request is
        needed; else it is `sketched`.
        """
        run, exact = await self.run_of(request), request.query_params.get("exact") == "1"
        file = run.metrics_file
        found = await asyncio.to_thread(self.kept.find, file)
        if found is None:
            is_long = exact and await asyncio.to_thread(size_of, file) >= SKETCHED_FROM
            async with self.reading if is_long else contextlib.nullcontext():
                if is_long and await request.is_disconnected():
                    return Response(status_code=400)  # the client has left while others were served
                found = await asyncio.to_thread(self.kept.read, file, exact=exact)
        kind = "exact" if found.is_exact else "sketched"
        headers = {"cache-control": "no-store", "x-curves": kind}
        return Response(found.content, media_type="application/json", headers=headers)

    async def learning(self, request: Request) -> Response:
        """Show the learning progress by the validation losses, as a part of the page."""
        run = await self.run_of(request)
        content = await asyncio.to_thread(learning_view, run)
        return self.studio.page("learning.html.j2", **content)

    async def images(self, request: Request) -> Response:
        """Show the images with the highest loss, as a part of the page."""
        run = await self.run_of(request)
        async with self.reading_losses:
            content = await asyncio.to_thread(image_loss_view, run, self.studio)
        return self.studio.page("image_losses.html.j2", **content)

    async def stream(self, request: Request) -> Response:
        """Stream the changes of a run as server-sent events."""
        run = await self.run_of(request)
        return StreamingResponse(
            self._told(run, request),
            media_type="text/event-stream",
            headers={"cache-control": "no-store"},
        )

    async def samples(self, request: Request) -> Response:
        """Show the previews, as a part of the page."""
        run = await self.run_of(request)
        content = await asyncio.to_thread(samples_view, run)
        name = self.studio.folders.name_of(run)
        return self.studio.page("samples.html.j2", name=name, **content)

    async def sample(self, request: Request) -> Response:
        """Return the file of a preview."""
        run, step = await self.run_of(request), request.path_params["step"]
        folder, name = run.samples / _step_folder(step), request.path_params["file"]
        file = await asyncio.to_thread(file_of, run, folder, name)
        kind = None if file is None else _IMAGES.get(file.suffix.lower())
        if file is None or kind is None:
            raise HTTPException(404, "This preview does not exist.")
        headers = {"cache-control": "no-store"}  # a new run may have the name of an old one
        return FileResponse(file, media_type=kind, headers=headers)

    async def report(self, request: Request) -> Response:
        """Write the report of a run, and return it as a download with its own styles."""
        run = await self.run_of(request)
        await in_own_thread(run_verb, ["report", run.path.absolute()])
        name = f"{printable(run.path.name)}.html"
        return FileResponse(run.report, media_type="text/html", filename=name)

    async def command(self, request: Request) -> Response:
        """Send a command to a run."""
        run, kind = await self.run_of(request), request.path_params["command"]
        if kind not in get_args(CommandName):
            raise HTTPException(404, f"There is no command {kind}.")
        state = await asyncio.to_thread(run.state)
        if not state.is_alive:
            raise HTTPException(409, f"No process is training this run. {state.sentence(run.path)}")
        await asyncio.to_thread(send_command, run.commands, kind)
        return self.studio.page("asked.html.j2", label=ASKS[kind])

    async def resume(self, request: Request) -> Response:
        """Resume a run in a separate process."""
        run = await self.run_of(request)
        state = await asyncio.to_thread(run.state)
        if state.is_alive:
            raise HTTPException(409, "This run is already being trained.")
        folder = str(state.status.get("folder", ""))
        await asyncio.to_thread(
            self.studio.run_processes.start, ["resume", run.path], run.path, folder
        )
        return RedirectResponse(f"/runs/{self.studio.folders.name_of(run)}", 303)

    async def _rows(self) -> list[dict[str, Any]]:
        def read() -> list[dict[str, Any]]:
            return run_rows(self.studio.folders.all_runs(), self.studio.folders.name_of)

        return await asyncio.to_thread(read)

    def _folder_names(self) -> str:
        return ", ".join(map(str, self.studio.folders.runs))

    async def _told(self, run: RunDirectory, request: Request) -> AsyncIterator[bytes]:
        shown = request.headers.get("last-event-id") or request.query_params.get("from", "")
        watch = await asyncio.to_thread(RunWatch, run, shown)
        processes, had_process = self.studio.run_processes, False
        while not self.studio.closing.is_set() and not await request.is_disconnected():
            has_process = processes.is_starting(run.path)
            ended, had_process = had_process and not has_process, has_process
            yield await asyncio.to_thread(self._news, watch, run, is_free=ended)
            await asyncio.sleep(self.studio.look_every_s)

    def _news(self, watch: RunWatch, run: RunDirectory, *, is_free: bool = False) -> bytes:
        """Return the changes of a run as events, or else a comment, which detects lost clients.

        Args:
            watch: Reads the changes.
            run: The run.
            is_free: Whether a process that the studio started for the run has just ended, after
                which the run can be resumed.
        """
        news = watch.look()
        told = []
        if news.state is not None or is_free:
            told.append(_event(self._state(run, news.state or run.state())))
        for name, found in (
            ("metrics", news.metrics), ("lines", news.lines), ("samples", news.samples),
        ):  # fmt: skip
            told += [_event(json.dumps(found), name)] if found else []
        told += [_event("1", "gap")] if news.has_more else []
        if told:
            told.append(f"id: {watch.position}\nevent: shown\ndata:\n\n")
        return ("".join(told) or ": still here\n\n").encode("utf-8", errors="replace")

    def _state(self, run: RunDirectory, state: RunState) -> str:
        """Return the state of a run as a part of its page, or a message if the run is gone."""
        if not run.is_there():
            return self.studio.templates.get_template("run_gone.html.j2").render()
        content = state_view(run, state, self.studio.run_processes)
        template = self.studio.templates.get_template("state.html.j2")
        return template.render(name=self.studio.folders.name_of(run), **content)


def _step_folder(text: str) -> str:
    """Return the name of the folder of a step in an address.

    Raises:
        HTTPException: 404 if it is not a valid step number.
    """
    step = whole_number(text, _LARGEST_STEP)
    if step is None:
        raise HTTPException(404, "There is no such step.")
    return step_name(step)


def _event(data: str, name: str = "") -> str:
    """Format a server-sent event (HTML Living Standard, 9.2), with a field per line of data."""
    head = f"event: {name}\n" if name else ""
    lines = data.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return head + "".join(f"data: {line}\n" for line in lines) + "\n"
