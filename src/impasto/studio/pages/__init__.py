"""The pages of the studio, one module per page with thin routes, and modules for their contents.

The module of a page has `routes(studio)`, which `studio/app.py` collects. A route reads the
request, gets the content in a thread, so that a slow disk blocks no other request, and renders a
template.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request

from impasto.studio.core import Studio
from impasto.studio.datasets import dataset_of
from impasto.studio.folders import address_of


async def dataset_in(studio: Studio, request: Request) -> Path:
    """Return the dataset that an address names.

    Raises:
        HTTPException: 404 if there is none.
    """
    name = request.path_params["dataset"]
    dataset = await asyncio.to_thread(dataset_of, studio.folders, name)
    if dataset is None:
        raise HTTPException(404, "This dataset does not exist: it was removed, renamed or moved.")
    return dataset


def captions_address(studio: Studio, dataset: Path) -> str:
    """Return the address of the page "Captions" of a dataset."""
    return f"/data/{address_of(studio.folders.data, dataset)}/captions"
