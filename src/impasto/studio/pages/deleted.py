"""The pages of deleted models: restore them, or remove them permanently after a confirmation."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from impasto.errors import ModelError
from impasto.invocation import command
from impasto.runs.queue import Queue
from impasto.studio.core import Studio
from impasto.studio.folders import Folders
from impasto.studio.forms import read_form
from impasto.studio.model_users import losers_of
from impasto.studio.models import CHECKPOINT_ENDINGS, MODEL_ENDINGS, all_models
from impasto.studio.pages.removed import address_after_removal
from impasto.studio.trash import DeletedModel, empty_trash, find_deleted, purge, restore

_LISTED_BYTES = 8 << 20  # names of deleted models, of one or two hundred bytes each


def routes(studio: Studio) -> list[BaseRoute]:
    """Return the routes of these pages; they must precede those of models, which match more."""
    pages = DeletedPages(studio)
    one = "/models/deleted/{deleted}"
    return [
        Route(one, pages.one),
        Route(f"{one}/restore", pages.restore, methods=["POST"]),
        Route(f"{one}/purge", pages.purge, methods=["POST"]),
        Route("/models/empty-trash", pages.empty_trash, methods=["POST"]),
    ]


@dataclass(frozen=True)
class DeletedPages:
    """Answers requests for deleted models.

    Attributes:
        studio: The state of the studio.
    """

    studio: Studio

    async def one(self, request: Request) -> Response:
        """Show a deleted model: its original path, and the runs and jobs that need it."""
        model = await self._deleted_of(request)

        def read() -> dict[str, Any]:
            folders = self.studio.folders
            runs = [summary.run for summary in folders.all_runs()]
            return {
                "model": model.view(),
                **losers_of(model.as_it_was, runs, Queue(self.studio.queue).jobs(), folders),
            }

        return self.studio.page("deleted_model.html.j2", **await asyncio.to_thread(read))

    async def restore(self, request: Request) -> Response:
        """Restore a deleted model and show it; refuse if no page would show it afterwards."""
        model = await self._deleted_of(request)
        await asyncio.to_thread(_require_shown, model, self.studio.folders)
        try:
            path = await asyncio.to_thread(restore, model)
        except ModelError as error:
            raise HTTPException(409, str(error)) from error

        def find() -> str:
            shown = all_models(self.studio.folders)
            return next((found.address for found in shown if found.path == path), "/models")

        return RedirectResponse(await asyncio.to_thread(find), 303)

    async def purge(self, request: Request) -> Response:
        """Remove a deleted model permanently."""
        model = await self._deleted_of(request)
        await _require_sure(request)
        await asyncio.to_thread(purge, model)
        return RedirectResponse(address_after_removal("/models", 1, model.size), 303)

    async def empty_trash(self, request: Request) -> Response:
        """Permanently remove the models that the page listed; those deleted later are kept."""
        form = await _require_sure(request)
        names = str(form.get("deleted", "")).split()
        gone = await asyncio.to_thread(empty_trash, self.studio.folders, set(names))
        size = sum(one.size for one in gone)
        address = address_after_removal("/models", len(gone), size)
        return RedirectResponse(f"{address}&emptied=yes", 303)

    async def _deleted_of(self, request: Request) -> DeletedModel:
        """Return the deleted model that an address names.

        Raises:
            HTTPException: 404 if there is none.
        """
        name = request.path_params["deleted"]
        found = await asyncio.to_thread(find_deleted, self.studio.folders, name)
        if found is None:
            raise HTTPException(
                404, "This model is not in the trash: it was restored, or deleted for good."
            )
        return found


def _require_shown(model: DeletedModel, folders: Folders) -> None:
    """Refuse to restore a model that no page would show, since the run that exported it is gone.

    Raises:
        HTTPException: 409 if no page would show it.
    """
    is_listed = model.path.suffix.lower() not in MODEL_ENDINGS - CHECKPOINT_ENDINGS
    is_beside_models = any(model.origin.is_relative_to(folder) for folder in folders.models)
    if model.as_it_was.run is None and not (is_listed and is_beside_models):
        raise HTTPException(
            409,
            f"{model.path} was not restored: the run that exported it no longer exists, so no page "
            f"would show it at {model.origin}. Move it into a model folder by hand, or restore it "
            f"anyway with: {command('models', 'restore', model.path.absolute())}",
        )


async def _require_sure(request: Request) -> FormData:
    """Return the submitted form if its box was ticked.

    Raises:
        HTTPException: 400 if it was not.
    """
    form = await read_form(request, most_bytes=_LISTED_BYTES)
    if form.get("sure") != "yes":
        raise HTTPException(400, "Nothing was removed: the box was not ticked.")
    return form
