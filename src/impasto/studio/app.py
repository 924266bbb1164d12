"""The web application of the studio: the routes of all pages behind one guard."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from impasto.errors import ImpastoError
from impasto.studio.core import Studio
from impasto.studio.guard import Access, Guard
from impasto.studio.pages import (
    captions,
    compare,
    data,
    deleted,
    draw,
    image_trash,
    images,
    models,
    new_run,
    new_start,
    queue,
    runs,
    start,
    static,
    tasks,
    trying,
)

PAGES = (
    start, runs, new_start, new_run, data, images, image_trash, captions, trying, queue, compare,
    draw, deleted, models, tasks, static,
)  # fmt: skip
"""The modules that define the routes."""


def create_app(studio: Studio, access: Access) -> Starlette:
    """Return the studio as an ASGI application: all pages, behind a guard of host and cookie.

    Args:
        studio: The folders, processes and templates that the routes use.
        access: The host names, token and cookie that requests must have.
    """

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101
        return studio.refusal(request, error.status_code, error.detail)

    async def failed(request: Request, error: Exception) -> Response:
        return studio.refusal(request, 500, str(error))

    return Starlette(
        routes=[route for page in PAGES for route in page.routes(studio)],
        middleware=[Middleware(Guard, access=access)],
        exception_handlers={HTTPException: refused, ImpastoError: failed, OSError: failed},
    )
