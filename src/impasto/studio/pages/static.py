"""The route of the scripts, styles and icons of the pages."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from impasto.studio.core import Studio
from impasto.studio.static_files import PREFIX, static_files


def routes(_: Studio) -> list[BaseRoute]:
    """Return the route of these files."""
    return [Route(f"{PREFIX}/{{asset}}", static_file)]


async def static_file(request: Request) -> Response:
    """Return a file, which browsers may cache for ever if the address has its current version."""
    found = static_files().get(request.path_params["asset"])
    if found is None:
        raise HTTPException(404, "There is no such file.")
    is_versioned = request.query_params.get("v") == found.version
    kept = "private, max-age=31536000, immutable" if is_versioned else "no-cache"
    return Response(found.content, media_type=found.kind, headers={"cache-control": kept})
