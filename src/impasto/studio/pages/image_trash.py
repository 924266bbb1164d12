"""The trash of a dataset, to which its gallery and image pages move images."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from impasto.errors import DatasetError
from impasto.studio.core import Studio
from impasto.studio.datasets import image_of
from impasto.studio.folders import address_of
from impasto.studio.forms import read_form
from impasto.studio.gallery import PER_PAGE
from impasto.studio.image_trash import TrashedImages, put_away, put_back, remove_entry, trashed
from impasto.studio.pages import dataset_in
from impasto.studio.pages.removed import address_after_removal


def routes(studio: Studio) -> list[BaseRoute]:
    """Return the routes of the trash."""
    pages = ImageTrashPages(studio)
    here = "/data/{dataset}/trash"
    return [
        Route(here, pages.put, methods=["POST"]),
        Route(f"{here}/{{entry}}/restore", pages.restore, methods=["POST"]),
        Route(f"{here}/{{entry}}/remove", pages.remove, methods=["POST"]),
    ]


@dataclass(frozen=True)
class ImageTrashPages:
    """Answers requests for the trash of a dataset.

    Attributes:
        studio: The state of the studio.
    """

    studio: Studio

    async def put(self, request: Request) -> Response:
        """Move the images selected in a form to the trash."""
        dataset = await dataset_in(self.studio, request)
        names = [str(name) for name in (await read_form(request, PER_PAGE)).getlist("image")]

        def move() -> None:
            found = [image_of(dataset, name) for name in dict.fromkeys(names)]
            images = [image for image in found if image is not None]
            if not images:
                raise HTTPException(400, "No existing image was selected.")
            put_away(dataset, images, self.studio.folders.data)

        return await self._done(request, move)

    async def restore(self, request: Request) -> Response:
        """Restore the images of an entry to their original paths."""
        entry = await self._entry(request)
        return await self._done(request, lambda: put_back(entry, self.studio.folders.data))

    async def remove(self, request: Request) -> Response:
        """Delete the images of an entry permanently."""
        entry = await self._entry(request)

        def measure() -> tuple[int, int]:
            return len(entry.images), entry.size

        number, size = await asyncio.to_thread(measure)
        done = await self._done(request, lambda: remove_entry(entry))
        gallery, _, _ = done.headers["location"].partition("#")
        return RedirectResponse(address_after_removal(gallery, number, size), 303)

    async def _entry(self, request: Request) -> TrashedImages:
        dataset = await dataset_in(self.studio, request)
        entries = await asyncio.to_thread(trashed, dataset)
        for entry in entries:
            if entry.name == request.path_params["entry"]:
                return entry
        raise HTTPException(404, "This entry is no longer in the trash.")

    async def _done(self, request: Request, work: Callable[[], None]) -> Response:
        dataset = await dataset_in(self.studio, request)
        try:
            await asyncio.to_thread(work)
        except DatasetError as error:
            raise HTTPException(409, str(error)) from error
        gallery = f"/data/{address_of(self.studio.folders.data, dataset)}"
        return RedirectResponse(f"{gallery}#trash", 303)
