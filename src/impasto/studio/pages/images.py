"""The page of one image: its crop, mask and captions.

Its content is read by `image_views.py`, which is imported on first use: it loads NumPy and Pillow,
which the studio does not need until an image is opened.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from impasto import files, storage_errors
from impasto.errors import ImpastoError
from impasto.hub_ids import is_hub_id
from impasto.parsing import parse_json, printable
from impasto.studio.core import Studio
from impasto.studio.datasets import image_of
from impasto.studio.folders import address_of
from impasto.studio.forms import read_form, texts_of, whole_number
from impasto.studio.image_copies import Views
from impasto.studio.pages import dataset_in
from impasto.studio.pages.buckets import known_options, resolution_of
from impasto.studio.pages.shown_dataset import Dataset
from impasto.studio.pages.tasks import task_view
from impasto.studio.verbs import in_own_thread, run_verb

_MASK_BYTES = 64 << 20
_EPOCHS = 4
_MOST_PIXELS = 2000
_PATIENCE_S = 120.0


def routes(studio: Studio) -> list[BaseRoute]:
    """Return the routes of this page."""
    pages = ImagePages(studio)
    one = "/data/{dataset}/images/{image}"
    return [
        Route("/data/{dataset}/files/{image}", pages.file),
        Route(one, pages.page),
        Route(f"{one}/bucket", pages.bucket),
        Route(f"{one}/crop", pages.crop, methods=["POST"]),
        Route(f"{one}/mask", pages.mask, methods=["GET"]),
        Route(f"{one}/mask", pages.save_mask, methods=["POST"]),
        Route(f"{one}/mask/model", pages.make_mask, methods=["POST"]),
        Route(f"{one}/showings", pages.showings),
    ]


@dataclass(frozen=True)
class _Shown:
    """A dataset, an image of it, and the address of the image's page."""

    dataset: Path
    image: Path
    address: str

    @property
    def name(self) -> str:
        """The path of the image relative to the dataset, with slashes."""
        return self.image.relative_to(self.dataset).as_posix()


@dataclass(frozen=True)
class ImagePages:
    """Answers requests for one image of a dataset.

    Attributes:
        studio: The state of the studio.
    """

    studio: Studio
    views: Views = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "views", Views(self.studio.home / "views"))

    async def page(self, request: Request) -> Response:
        """Show the page of an image."""
        from impasto.studio.pages.image_views import image_page

        shown, masks = await self._shown(request), request.query_params.get("masks", "")
        folder = self._masks(shown, masks)

        def read() -> dict[str, Any]:
            facts = self.views.facts(shown.dataset, shown.image)
            resolution = resolution_of(known_options(Dataset(self.studio, shown.dataset)))
            return image_page(shown.dataset, shown.image, facts, folder, resolution)

        content = await self._read(read)
        query = f"?{urlencode({'masks': masks})}" if masks else ""
        return self.studio.page(
            "image.html.j2",
            address=shown.address,
            dataset=request.path_params["dataset"],
            image=request.path_params["image"],
            query=query,
            **content,
        )

    async def file(self, request: Request) -> Response:
        """Return the image in a format that browsers can show."""
        shown = await self._shown(request)
        return await self._file(shown, shown.image, ".jpg")

    async def mask(self, request: Request) -> Response:
        """Return the mask of an image in a format that browsers can show."""
        from impasto.studio.pages.image_views import mask_of

        shown = await self._shown(request)
        folder = self._masks(shown, request.query_params.get("masks", ""))
        file = await asyncio.to_thread(mask_of, shown.dataset, shown.image, folder)
        if file is None or not files.is_inside(file, folder):
            raise HTTPException(404, "This image has no mask in that folder.")
        return await self._file(shown, file, ".png")

    async def bucket(self, request: Request) -> Response:
        """Return the bucket of a rectangle of the image, and the part that it keeps, as JSON."""
        from impasto.studio.pages.image_views import bucket_answer

        shown, given = await self._shown(request), dict(request.query_params)

        def answer_it() -> dict[str, Any]:
            facts = self.views.facts(shown.dataset, shown.image)
            known = known_options(Dataset(self.studio, shown.dataset))
            return bucket_answer(shown.image, facts, given, known)

        answer = await self._read(answer_it)
        return JSONResponse(answer, 422 if "fault" in answer else 200)

    async def crop(self, request: Request) -> Response:
        """Write the crop file of the image, or remove it."""
        from impasto.studio.pages.image_views import keep_crop, remove_crop

        shown = await self._shown(request)
        given = texts_of(await read_form(request))
        if "remove" in given:
            await self._read(lambda: remove_crop(shown.image))
        else:
            facts = await self._read(lambda: self.views.facts(shown.dataset, shown.image))
            await self._read(lambda: keep_crop(shown.image, facts, given))
        masks = given.get("masks", "")
        query = f"?{urlencode({'masks': masks})}" if masks else ""
        return RedirectResponse(f"{shown.address}{query}", 303)

    async def save_mask(self, request: Request) -> Response:
        """Save a painted mask."""
        shown = await self._shown(request)
        async with request.form(max_files=1, max_fields=4, max_part_size=_MASK_BYTES) as form:
            folder = self._masks(shown, texts_of(form).get("masks", ""))
            painted = form.get("mask")
            if not isinstance(painted, UploadFile):
                raise HTTPException(422, "The request contains no mask.")
            content = await painted.read(_MASK_BYTES + 1)
        if len(content) > _MASK_BYTES:
            raise HTTPException(413, "A mask of more than 64 MiB is not accepted.")

        def keep() -> None:
            file = self.studio.home / "uploads" / f"{secrets.token_hex(8)}.png"
            try:
                with storage_errors.reported(file):
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(content)
                arguments: list[str | Path] = [f"--only={shown.name}", "--from", file]
                run_verb(
                    ["dataset", "mask", shown.dataset, *arguments, "--out", folder, "--overwrite"],
                    self.studio.home,
                    _PATIENCE_S,
                )
            finally:
                file.unlink(missing_ok=True)

        await self._read(keep)
        return JSONResponse({"saved": printable(str(folder))})

    async def make_mask(self, request: Request) -> Response:
        """Start a task in which a model makes the mask of this image."""
        shown = await self._shown(request)
        given = texts_of(await read_form(request))
        folder = self._masks(shown, given.get("masks", ""))
        model = self._model(given.get("model", "").strip())
        labels = [label.strip() for label in given.get("labels", "").split(",") if label.strip()]
        arguments: list[str | Path] = ["dataset", "mask", shown.dataset, f"--only={shown.name}"]
        arguments += [
            f"--model={model}",
            *(f"--label={label}" for label in labels),
            "--out",
            folder,
        ]
        arguments += [f"--{name}={_number(given, name)}" for name in ("grow", "blur")]
        arguments += ["--invert"] if "invert" in given else []
        arguments += ["--overwrite"] if "overwrite" in given else []

        def begin() -> dict[str, Any]:
            files.require_writable(self.studio.home)
            title = f"Make the mask of {printable(shown.image.name)}"
            name = self.studio.tasks.start(arguments, title, shown.address, self.studio.home)
            task = self.studio.tasks.find(name)
            assert task is not None  # noqa: S101 - it was started a moment ago
            return task_view(self.studio.tasks, task)

        return self.studio.page("task_state.html.j2", task=await self._read(begin))

    async def showings(self, request: Request) -> Response:
        """Show the caption of an image as training will see it, in the first epochs."""
        shown = await self._shown(request)
        arguments: list[str | Path] = [
            "dataset",
            "captions",
            shown.dataset,
            f"--image={shown.name}",
        ]
        arguments += ["--json", "--epochs", str(_EPOCHS)]

        def ask() -> list[dict[str, Any]]:
            files.require_writable(self.studio.home)
            told = run_verb(arguments, self.studio.home, _PATIENCE_S)
            (found,) = parse_json(told[told.index("{") :], halves=True)["images"].values()
            return list(found)

        return self.studio.page("image_showings.html.j2", showings=await self._read(ask))

    async def _shown(self, request: Request) -> _Shown:
        """Return the image that an address names.

        Raises:
            HTTPException: 404 if there is none.
        """
        dataset = await dataset_in(self.studio, request)
        name = request.path_params["dataset"]
        image = await asyncio.to_thread(image_of, dataset, request.path_params["image"])
        if image is None:
            raise HTTPException(404, "This image does not exist: it was removed or renamed.")
        return _Shown(dataset, image, f"/data/{name}/images/{address_of([dataset], image)}")

    def _masks(self, shown: _Shown, text: str) -> Path:
        """Return the mask folder named in a form.

        Raises:
            HTTPException: 422 if it is outside the folders that the studio shows.
        """
        from impasto.studio.pages.image_views import masks_folder

        folder = masks_folder(self.studio.folders.data, shown.dataset, text)
        if folder is None:
            raise HTTPException(
                422, "The mask folder must be inside one of the folders that the studio shows."
            )
        return folder

    def _model(self, text: str) -> str:
        """Return the path of a model in a model folder, or a possible id on the Hub.

        Raises:
            HTTPException: 422 if it is neither.
        """
        for folder in self.studio.folders.models:
            try:
                path = folder / text
                if text and files.is_inside(path, folder) and path.is_dir():
                    return str(path)
            except (OSError, ValueError):
                continue
        if is_hub_id(text, short=True):
            return text
        raise HTTPException(
            422,
            "There is no such model. Enter a folder inside the model folders, or the id of a "
            "model on the Hub.",
        )

    async def _file(self, shown: _Shown, file: Path, ending: str) -> Response:
        path, kind = await self._read(lambda: self.views.shown(shown.dataset, file, ending))
        return FileResponse(path, media_type=kind, headers={"cache-control": "no-cache"})

    async def _read(self, work: Any) -> Any:
        """Call a function that reads files, or waits for a process, in a separate thread.

        Raises:
            HTTPException: 404 if the image no longer exists; 422 for other errors.
        """
        try:
            return await in_own_thread(work)
        except FileNotFoundError as error:
            raise HTTPException(404, "This image no longer exists.") from error
        except ImpastoError as error:
            raise HTTPException(422, str(error)) from error


def _number(given: dict[str, str], name: str) -> int:
    """Return a number of pixels in a form, 0 if it is empty.

    Raises:
        HTTPException: 422 if it is invalid or too large.
    """
    least = 0 if name == "blur" else -_MOST_PIXELS
    number = whole_number(given.get(name, "").strip() or "0", _MOST_PIXELS, least)
    if number is None:
        raise HTTPException(
            422, f"{name} must be a whole number of pixels from {least} to {_MOST_PIXELS}."
        )
    return number
