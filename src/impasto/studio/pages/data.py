"""The pages of datasets: the list of all, the gallery of one, its report, and uploads to it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from impasto import files, storage_errors
from impasto.errors import StorageError
from impasto.parsing import printable
from impasto.studio.core import Studio
from impasto.studio.datasets import NEW_MARK, image_of
from impasto.studio.forms import read_form, texts_of, whole_number
from impasto.studio.gallery import GalleryFilter
from impasto.studio.pages import dataset_in
from impasto.studio.pages.buckets import known_options, options_said
from impasto.studio.pages.data_views import (
    BUCKET_OPTIONS,
    LIST_FILE,
    REPORT_FILE,
    datasets_page,
    gallery_page,
    task_view_of,
    work_view,
)
from impasto.studio.pages.health_views import health_page, report_view
from impasto.studio.pages.removed import removal_text
from impasto.studio.pages.shown_dataset import Dataset
from impasto.studio.thumbnails import Thumbnails, hash_file, thumbnail_of, version_of
from impasto.studio.uploads import Outcome, UploadReceiver, why_no_name

_VERBS = ("list", "report")
_LARGEST_OPTION = 16_384
_PIECE_BYTES = 1 << 20
_LONGEST_SHOWN = 300  # characters of a refused name in an address
_KEPT = {"cache-control": "private, max-age=86400"}
_NOT_KEPT = {"cache-control": "no-store"}


def routes(studio: Studio) -> list[BaseRoute]:
    """Return the routes of these pages."""
    pages = DataPages(studio, Thumbnails())
    return [
        Route("/data", pages.all),
        Route("/data", pages.create, methods=["POST"]),
        Route("/data/{dataset}", pages.gallery),
        Route("/data/{dataset}/thumbnails/{image}", pages.thumbnail),
        Route("/data/{dataset}/read", pages.read, methods=["POST"]),
        Route("/data/{dataset}/health", pages.health),
        Route("/data/{dataset}/report", pages.report),
        Route("/data/{dataset}/report", pages.make_report, methods=["POST"]),
        Route("/data/{dataset}/progress/{verb}", pages.work),
        Route("/data/{dataset}/upload", pages.upload, methods=["POST"]),
    ]


@dataclass(frozen=True)
class DataPages:
    """Answers requests for datasets.

    Attributes:
        studio: The state of the studio.
        thumbnails: Makes thumbnails, and checks uploaded images.
    """

    studio: Studio
    thumbnails: Thumbnails

    async def dataset_of(self, request: Request) -> Dataset:
        """Return the dataset that an address names.

        Raises:
            HTTPException: 404 if there is none.
        """
        return Dataset(self.studio, await dataset_in(self.studio, request))

    async def all(self, request: Request) -> Response:
        """Show all datasets and a form for a new one; `refused` is a name refused before."""
        given, where = request.query_params.get("refused"), request.query_params.get("where", "0")
        folders = self.studio.folders.data
        if given is None or where not in map(str, range(len(folders))):
            return await self._all()
        path = folders[int(where)] / given if not why_no_name(given) else None

        def fault() -> str:
            if path is not None and os.path.lexists(path):
                return f"{given} already exists. Choose another name."
            fault_text = why_no_name(given)
            return f"{fault_text[:1].upper()}{fault_text[1:]}." if fault_text else ""

        return await self._all(fault=await asyncio.to_thread(fault), given=given, where=where)

    async def create(self, request: Request) -> Response:
        """Create the folder of a new dataset."""
        given = texts_of(await read_form(request))
        name, where = given.get("name", "").strip(), given.get("where", "0")
        folders = self.studio.folders.data
        if where not in map(str, range(len(folders))):
            raise HTTPException(400, "There is no such image folder.")
        path = folders[int(where)] / name

        def make() -> bool:
            if why_no_name(name):
                return False
            with storage_errors.reported(path):
                try:
                    path.mkdir()
                except FileExistsError:
                    return False
                (path / NEW_MARK).mkdir(parents=True)
            return True

        if not await asyncio.to_thread(
            make
        ):  # redirect, so that "back" does not submit the form again
            said = urlencode({"refused": name[:_LONGEST_SHOWN], "where": where}, errors="replace")
            return RedirectResponse(f"/data?{said}", 303)
        return RedirectResponse(Dataset(self.studio, path).address, 303)

    async def gallery(self, request: Request) -> Response:
        """Show the images of a dataset, a hundred per page."""
        dataset, choice = await self.dataset_of(request), GalleryFilter.of(request.query_params)

        def read() -> dict[str, Any]:
            removed = removal_text(request, "images")
            page = gallery_page(dataset, choice)
            return {**page, "report": report_view(dataset), "removed": removed}

        return self.studio.page("gallery.html.j2", **await asyncio.to_thread(read))

    async def thumbnail(self, request: Request) -> Response:
        """Return the thumbnail of an image, made if missing, or the reason for a failure."""
        dataset, name = await self.dataset_of(request), request.path_params["image"]
        path = await asyncio.to_thread(image_of, dataset.path, name)
        if path is None:
            raise HTTPException(404, "This image does not exist.")

        def look() -> tuple[Path, Path | None]:
            file = hash_file(dataset.derived, dataset.path, path)
            return file, thumbnail_of(file)

        try:
            file, found = await asyncio.to_thread(look)
        except OSError as error:
            raise HTTPException(404, "This image no longer exists.") from error
        reason = ""
        if found is None:  # an existing one does not wait for others to be made
            reason = await asyncio.wrap_future(self.thumbnails.request(path, file))
            found = await asyncio.to_thread(thumbnail_of, file)
        if reason or found is None:
            why = reason or "its thumbnail was removed just now"
            return PlainTextResponse(printable(why), 415, _NOT_KEPT)
        keeps = version_of(file) == request.query_params.get("v")
        headers = _KEPT if keeps else _NOT_KEPT
        return FileResponse(found, media_type="image/jpeg", headers=headers)

    async def read(self, request: Request) -> Response:
        """Start listing the folder again, unless that is running."""
        dataset = await self.dataset_of(request)
        given = texts_of(await read_form(request))
        if not any(given.get(name, "").strip() for name in BUCKET_OPTIONS):
            given |= await asyncio.to_thread(options_said, dataset)
        arguments: list[str] = [
            *_bucket_options(given),
            *(["--copies"] if given.get("copies") else []),
        ]
        title = f"{'Compare' if given.get('copies') else 'Read'} the images of {dataset.title}"
        await asyncio.to_thread(self._start, dataset, "list", LIST_FILE, arguments, title)
        return await self._started(request, dataset, "list")

    async def make_report(self, request: Request) -> Response:
        """Start writing the health report, unless that is running."""
        dataset = await self.dataset_of(request)
        title = f"Health report on {dataset.title}"

        def start() -> None:
            arguments = _bucket_options(known_options(dataset))
            self._start(dataset, "report", REPORT_FILE, [*arguments, "--overwrite"], title)

        await asyncio.to_thread(start)
        return await self._started(request, dataset, "report")

    async def health(self, request: Request) -> Response:
        """Show the results of the health report as a page of the studio."""
        dataset = await self.dataset_of(request)
        content = await asyncio.to_thread(health_page, dataset)
        return self.studio.page("health.html.j2", **content)

    async def report(self, request: Request) -> Response:
        """Return the health report as a file to download, which contains its own styles."""
        dataset = await self.dataset_of(request)
        file = dataset.derived / REPORT_FILE
        if not await asyncio.to_thread(file.is_file):
            raise HTTPException(404, "There is no report on this dataset yet.")
        name = f"{dataset.title}-report.html"
        return FileResponse(file, media_type="text/html", filename=name, headers=_NOT_KEPT)

    async def work(self, request: Request) -> Response:
        """Show the state of a task on a dataset; its page polls this part."""
        dataset, verb = await self.dataset_of(request), request.path_params["verb"]
        if verb not in _VERBS:
            raise HTTPException(404, "There is no such task.")
        return await self._work(dataset, verb, request.query_params.get("had", "1"))

    async def upload(self, request: Request) -> Response:
        """Add uploaded files to a dataset; list refused files with the reason."""
        dataset = await self.dataset_of(request)
        receiver = await asyncio.to_thread(self._receiver, request, dataset)
        piece, fault, status = bytearray(), list[Outcome](), 200
        try:
            async for chunk in request.stream():
                piece += chunk
                if len(piece) >= _PIECE_BYTES:
                    await asyncio.to_thread(receiver.feed, bytes(piece))
                    piece.clear()
            await asyncio.to_thread(receiver.feed, bytes(piece))
        except ClientDisconnect:
            return PlainTextResponse(
                "The browser closed the connection.", 400
            )  # which is never read
        except StorageError as error:
            status, fault = 500, [Outcome(receiver.arriving, str(error))]
        finally:  # not in a thread: when the server stops, it does not wait for threads
            receiver.close()
        is_fragment = "hx-request" in request.headers
        template = "uploaded.html.j2" if is_fragment else "upload.html.j2"
        outcomes = [*receiver.outcomes, *fault] or [Outcome("", "No file was selected.")]
        return self.studio.page(template, status, dataset=dataset, outcomes=outcomes)

    def _receiver(self, request: Request, dataset: Dataset) -> UploadReceiver:
        if dataset.derived != dataset.path / files.DERIVED_DIR:
            raise StorageError(
                f"{dataset.path} cannot be written, or a link in it leads to another folder."
            )
        return UploadReceiver(
            request.headers.get("content-type", ""),
            dataset.path,
            dataset.path / NEW_MARK,
            self.thumbnails.check,
        )

    def _start(
        self, dataset: Dataset, verb: str, out: Any, arguments: list[str], title: str
    ) -> None:
        if (dataset.path / "config.toml").exists():
            raise HTTPException(
                409,
                f"{dataset.path} has a file config.toml, and so counts as a run directory, not as "
                f"an image folder. Move that file elsewhere.",
            )
        running = work_view(dataset, verb)
        if running is not None and running["is_alive"]:
            return
        derived = dataset.derived
        options = ["--out", derived / out, "--cache-dir", derived]
        self.studio.tasks.start(
            ["dataset", verb, dataset.path, *options, *arguments], title, dataset.address
        )

    async def _started(self, request: Request, dataset: Dataset, verb: str) -> Response:
        if "hx-request" not in request.headers:
            return RedirectResponse(dataset.address, 303)
        return await self._work(dataset, verb, request.query_params.get("had", "1"))

    async def _work(self, dataset: Dataset, verb: str, had: str) -> Response:
        def look() -> dict[str, Any]:
            task = dataset.newest_task(verb)
            work = None if task is None else task_view_of(dataset, task, verb)
            return {"work": work, "report": report_view(dataset)}

        content = await asyncio.to_thread(look)
        return self.studio.page(
            "data_work.html.j2", dataset=dataset, verb=verb, had=had == "1", **content
        )

    async def _all(self, **more: str) -> Response:
        content = await asyncio.to_thread(datasets_page, self.studio)
        said: dict[str, Any] = {"fault": "", "given": "", "where": "0", **more}
        return self.studio.page("data.html.j2", **content, **said)


def _bucket_options(given: Mapping[str, str]) -> list[str]:
    """Return the command's options for buckets from the fields of a form.

    Raises:
        HTTPException: 400 if a value is not a valid number of pixels.
    """
    options: list[str] = []
    for name, label in BUCKET_OPTIONS.items():
        text = given.get(name, "").strip()
        if not text:
            continue
        if whole_number(text, _LARGEST_OPTION, 1) is None:
            raise HTTPException(
                400, f"{label}: enter a whole number of pixels up to {_LARGEST_OPTION}."
            )
        options += [f"--{name.replace('_', '-')}", text]
    return [*options, "--no-upscale"] if given.get("no_upscale") == "1" else options
