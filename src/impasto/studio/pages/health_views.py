"""Content of a dataset's health page: its report's JSON, with thumbnails of the studio."""

from __future__ import annotations

import time
from pathlib import Path, PurePath
from typing import Any

from starlette.exceptions import HTTPException

from impasto.errors import RunError
from impasto.parsing import printable, read_object
from impasto.report.health_view import health_view
from impasto.studio.datasets import image_of
from impasto.studio.folders import address_of
from impasto.studio.pages.data_views import REPORT_FILE, work_view
from impasto.studio.pages.shown_dataset import Dataset, thumbnail_address

_DATA_FILE = REPORT_FILE.with_suffix(".json")


def report_view(dataset: Dataset) -> dict[str, Any]:
    """Return when the health report was written (empty if never), and the task that writes it."""
    return {"when": _written(dataset.derived), "work": work_view(dataset, "report")}


def health_page(dataset: Dataset) -> dict[str, Any]:
    """Return the content of the health page.

    Raises:
        HTTPException: 404 if there is no report.
        RunError: The report is damaged, or of another version.
    """
    derived = dataset.derived
    file = derived / _DATA_FILE
    if not file.is_file():
        raise HTTPException(404, "There is no report on this dataset yet.")

    def drawn(path: str, _: str) -> dict[str, str]:
        return _shown(dataset, derived, path)

    try:
        view = health_view(read_object(file) or {}, drawn)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise RunError(
            f"{file} is damaged, or was written by another version. Write the health report again."
        ) from error
    view["place"] = printable(str(dataset.path))
    return {
        **view,
        "dataset": dataset,
        "when": _written(derived),
        "is_darkened": False,
        "rest_in": f"the file {printable(str(file))}",
    }


def _written(derived: Path) -> str:
    try:
        written = (derived / REPORT_FILE).stat().st_mtime
    except OSError:
        return ""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(written))


def _shown(dataset: Dataset, derived: Path, path: str) -> dict[str, str]:
    """Return the addresses of an image's thumbnail and page; empty ones if it no longer exists.

    Reports name images by the dataset's name and the relative path, or by an absolute path.
    """
    named = PurePath(path)
    inside = (
        Path(*named.parts[1:])
        if named.parts[:1] == (dataset.path.name,)
        else Path(named).relative_to(dataset.path)
        if named.is_relative_to(dataset.path)
        else None
    )
    if inside is None:
        return {"image": "", "address": ""}
    name = address_of([dataset.path], dataset.path / inside)
    if image_of(dataset.path, name) is None:
        return {"image": "", "address": ""}
    return {
        "image": thumbnail_address(dataset, derived, dataset.path / inside),
        "address": f"{dataset.address}/images/{name}",
    }
