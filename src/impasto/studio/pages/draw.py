"""The page "Draw": images from prompts, drawn by a worker that keeps the model loaded."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from impasto.errors import ConfigError, RunError
from impasto.runs.draw_requests import AXES, MOST_IMAGES
from impasto.runs.drawings import DrawFolder, Drawing
from impasto.sampler_table import SAMPLERS
from impasto.studio.core import Studio
from impasto.studio.drawable import Drawable, find_drawable
from impasto.studio.drawing_desk import DrawingDesk
from impasto.studio.forms import read_form
from impasto.studio.pages.draw_form import (
    HYPERNETWORKS,
    Typed,
    drawn_with,
    request_from,
    typed_from,
    typed_in,
    untouched,
)
from impasto.studio.pages.draw_views import drawing_view

LISTED = 12
"""Number of drawings on a page."""

_FOLDER = "drawings"
_MOST_FIELDS = 2100  # each model of an axis is a field


def routes(studio: Studio) -> list[BaseRoute]:
    """Return the routes of this page."""
    pages = DrawPages(studio, DrawingDesk(DrawFolder(studio.home / _FOLDER), studio.tasks))
    return [
        Route("/draw", pages.form, methods=["GET"]),
        Route("/draw", pages.ask, methods=["POST"]),
        Route("/draw/worker/start", pages.start, methods=["POST"]),
        Route("/draw/worker/stop", pages.stop, methods=["POST"]),
        Route("/draw/{drawing}", pages.one),
        Route("/draw/{drawing}/part", pages.fragment),
        Route("/draw/{drawing}/images/{file}", pages.image),
        Route("/draw/{drawing}/cancel", pages.cancel, methods=["POST"]),
        Route("/draw/{drawing}/delete", pages.delete, methods=["POST"]),
    ]


@dataclass(frozen=True)
class DrawPages:
    """Answers requests for drawings.

    Attributes:
        studio: The state of the studio.
        desk: Manages the drawings and the worker.
    """

    studio: Studio
    desk: DrawingDesk

    async def form(self, request: Request) -> Response:
        """Show the form, and the drawings in progress and finished.

        In the query, `again` names a drawing whose settings fill the form, and `model` a model to
        choose. With `seed=same`, the drawing's seed is used even if it was random.
        """

        def read() -> dict[str, Any]:
            drawable = find_drawable(self.studio.folders)
            again = self.desk.folder.find(request.query_params.get("again", ""))
            model = request.query_params.get("model", "")
            typed = drawn_with(model, drawable) if again is None else _typed_of(again, drawable)
            if request.query_params.get("seed") == "same":
                typed = {**typed, "random_seed": False}
            before = request.query_params.get("before", "")
            return self._content(drawable, typed, {}, again=again, before=before)

        return self.studio.page("draw.html.j2", **await asyncio.to_thread(read))

    async def ask(self, request: Request) -> Response:
        """Request a drawing; faults are shown at their fields."""
        typed = typed_in(await read_form(request, _MOST_FIELDS))

        def answer() -> Drawing | dict[str, Any]:
            drawable = find_drawable(self.studio.folders)
            wanted, faults = request_from(typed, drawable)
            if wanted is None:
                return self._content(drawable, typed, faults)
            return self.desk.ask(wanted)

        found = await asyncio.to_thread(answer)
        if isinstance(found, Drawing):
            return RedirectResponse(f"/draw?again={found.path.name}#drawings", 303)
        return self.studio.page("draw.html.j2", 422, **found)

    async def one(self, request: Request) -> Response:
        """Show a drawing with its settings."""
        return await self._shown(request, "drawing.html.j2")

    async def fragment(self, request: Request) -> Response:
        """Show the state of a drawing; pages poll this part while it is in progress."""
        return await self._shown(request, "drawing_state.html.j2")

    async def image(self, request: Request) -> Response:
        """Return an image of a drawing or its grid (`grid.png`); with `keep=1`, as a download."""
        drawing = await self._drawing_of(request)
        file = await asyncio.to_thread(drawing.image, request.path_params["file"])
        if file is None:
            raise HTTPException(404, "This image does not exist.")
        keeps = request.query_params.get("keep") == "1"
        name = f"{drawing.path.name}-{file.name}" if keeps else None
        return FileResponse(
            file, media_type="image/png", filename=name, headers={"cache-control": "no-store"}
        )

    async def cancel(self, request: Request) -> Response:
        """Request the cancellation of a drawing."""
        drawing = await self._drawing_of(request)
        await asyncio.to_thread(drawing.cancel)
        return await self._shown(request, "drawing_state.html.j2")

    async def delete(self, request: Request) -> Response:
        """Delete a drawing and its images."""
        drawing = await self._drawing_of(request)
        try:
            await asyncio.to_thread(self.desk.remove, drawing)
        except RunError as error:
            raise HTTPException(409, str(error)) from error
        return RedirectResponse("/draw#drawings", 303)

    async def start(self, _: Request) -> Response:
        """Start the worker for the waiting drawings."""
        await asyncio.to_thread(self.desk.start)
        return RedirectResponse("/draw#drawings", 303)

    async def stop(self, _: Request) -> Response:
        """Ask the worker to stop, to free its VRAM."""
        if await asyncio.to_thread(lambda: self.desk.folder.has_worker):
            await asyncio.to_thread(self.desk.folder.stop_worker)
        return RedirectResponse("/draw#worker", 303)

    async def _shown(self, request: Request, template: str) -> Response:
        drawing = await self._drawing_of(request)
        view = await asyncio.to_thread(drawing_view, drawing, self.desk)
        return self.studio.page(template, drawing=view)

    async def _drawing_of(self, request: Request) -> Drawing:
        name = request.path_params["drawing"]
        drawing = await asyncio.to_thread(self.desk.folder.find, name)
        if drawing is None:
            raise HTTPException(404, "This drawing does not exist: it was deleted.")
        return drawing

    def _content(
        self,
        drawable: Drawable,
        typed: Typed,
        faults: dict[str, str],
        *,
        again: Drawing | None = None,
        before: str = "",
    ) -> dict[str, Any]:
        """Return the variables of `draw.html.j2`."""
        newest = [d for d in reversed(self.desk.folder.all()) if not before or d.path.name < before]
        shown = newest[:LISTED]
        return {
            "typed": typed,
            "faults": faults,
            "drawable": drawable,
            "samplers": list(SAMPLERS),
            "axes": AXES,
            "most": MOST_IMAGES,
            "slots": range(HYPERNETWORKS),
            "training": self._training(),
            "has_gpu": not self.studio.machine.has_no_gpu(),
            "has_worker": self.desk.has_worker(),
            "again": None if again is None else again.path.name,
            "drawings": [drawing_view(drawing, self.desk) for drawing in shown],
            "older": shown[-1].path.name if len(newest) > LISTED else "",
            "folders": ", ".join(map(str, self.studio.folders.models)),
        }

    def _training(self) -> Sequence[str]:
        """Return the names of the runs that seem to be training on this machine."""
        runs = self.studio.folders.all_runs()
        return [summary.run.path.name for summary in runs if summary.state.is_alive]


def _typed_of(drawing: Drawing, drawable: Drawable) -> Typed:
    try:
        return typed_from(drawing.request(), drawable)
    except ConfigError:
        return untouched()
