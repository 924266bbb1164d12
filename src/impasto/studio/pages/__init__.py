"""The pages of the studio, one module each: its routes, thin, and next to it what it shows.

A module of a page has `routes(studio)`, which `studio/app.py` collects. Routes read requests, ask
for what is shown in a thread, so that a slow disk stops nobody else, and render a template.
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
    """The dataset that an address names.

    Raises:
        HTTPException: There is none: 404.
    """
    name = request.path_params["dataset"]
    dataset = await asyncio.to_thread(dataset_of, studio.folders, name)
    if dataset is None:
        raise HTTPException(404, "This dataset is not there: it was removed, renamed or moved.")
    return dataset


def captions_address(studio: Studio, dataset: Path) -> str:
    """The address of the captions of a dataset."""
    return f"/data/{address_of(studio.folders.data, dataset)}/captions"
