"""The page "Models": the list of models, and for each its contents and operations."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from impasto.parsing import printable, read_object
from impasto.progress import size_text
from impasto.report.hub_licenses import COMMON, LICENSES
from impasto.runs.queue import Queue
from impasto.studio.core import Studio
from impasto.studio.drawable import find_drawable
from impasto.studio.folders import address_of
from impasto.studio.forms import read_form, texts_of
from impasto.studio.model_users import losers_of, user_view, users_of, working_with
from impasto.studio.models import MOST_SCANNED, FoundModel, all_models, find_model
from impasto.studio.pages.model_forms import (
    CONVERT_CHOICES,
    Arguments,
    convert_arguments,
    download_arguments,
    publish_arguments,
)
from impasto.studio.pages.model_uploads import ModelUploads
from impasto.studio.pages.removed import removal_text
from impasto.studio.pages.tasks import task_view
from impasto.studio.tasks import TaskResult
from impasto.studio.trash import all_deleted, delete

MOST = 1000
"""Maximum number of models that are listed, the newest ones."""


def routes(studio: Studio) -> list[BaseRoute]:
    """Return the routes of these pages."""
    pages = ModelPages(studio)
    one = "/models/{root}/{name}"
    return [
        Route("/models", pages.all),
        Route("/models/download", pages.download, methods=["POST"]),
        Route(one, pages.one),
        Route(f"{one}/inspection", pages.inspection),
        Route(f"{one}/inspect", pages.inspect, methods=["POST"]),
        Route(f"{one}/convert", pages.convert, methods=["POST"]),
        Route(f"{one}/publish", pages.publish, methods=["POST"]),
        Route(f"{one}/publish/{{upload}}", pages.upload),
        Route(f"{one}/publish/{{upload}}/part", pages.upload_fragment),
        Route(f"{one}/publish/{{upload}}", pages.send, methods=["POST"]),
        Route(f"{one}/delete", pages.ask_delete),
        Route(f"{one}/delete", pages.delete, methods=["POST"]),
    ]


@dataclass(frozen=True)
class _Refused:
    """A form of a model's page that was refused.

    Attributes:
        form: `convert` or `publish`.
        typed: Its fields as submitted.
        why: The error that explains the refusal.
    """

    form: str
    typed: Mapping[str, str]
    why: HTTPException


@dataclass(frozen=True)
class ModelPages:
    """Answers requests for models.

    Attributes:
        studio: The state of the studio.
    """

    studio: Studio

    @property
    def _uploads(self) -> ModelUploads:
        return ModelUploads(self.studio)

    async def all(self, request: Request) -> Response:
        """Show all models, the deleted ones, and a form to download another."""
        emptied = "emptied" in request.query_params
        return await self._all(removed=removal_text(request, "models"), emptied=emptied)

    async def _all(
        self,
        *,
        removed: str = "",
        emptied: bool = False,
        typed: Mapping[str, str] | None = None,
        refused: HTTPException | None = None,
    ) -> Response:
        """Render the page of all models, with the typed values if its form was refused."""

        def read() -> dict[str, Any]:
            folders = self.studio.folders
            deleted, cut = all_deleted(folders), list[Path]()
            models = all_models(folders, cut)
            return {
                "models": [model.view() for model in models[:MOST]],
                "number": len(models),
                "cut": [printable(str(folder)) for folder in cut],
                "scanned": MOST_SCANNED,
                "folders": [printable(str(folder)) for folder in folders.models],
                "deleted": [model.view() for model in deleted],
                "removed": removed,
                "emptied": emptied,
                "typed": typed or {},
                "fault": "" if refused is None else refused.detail,
                "trash": size_text(sum(model.size for model in deleted)),
            }

        status = 200 if refused is None else refused.status_code
        return self.studio.page("models.html.j2", status, **await asyncio.to_thread(read))

    async def one(self, request: Request) -> Response:
        """Show a model: its contents, and the forms to convert, publish and delete it."""
        model = await self._model_of(request)
        return await self._one(model, request.query_params.get("task", ""))

    async def _one(
        self, model: FoundModel, task: str = "", refused: _Refused | None = None
    ) -> Response:
        """Render the page of a model, with the typed values if one of its forms was refused."""

        def read() -> dict[str, Any]:
            users = users_of(model, (s.run for s in self.studio.folders.all_runs()))
            return {
                "model": model.view(),
                **_as_sent(refused, self._uploads.last(model)),
                "drawn_with": find_drawable(self.studio.folders).address_of(str(model.path)),
                "run": None if model.run is None else self.studio.folders.name_of(model.run),
                "users": [user_view(run, key, self.studio.folders) for run, key in users],
                "choices": CONVERT_CHOICES,
                "licenses": LICENSES,
                "common": COMMON,
                "folders": [printable(str(f)) for f in self.studio.folders.models],
                **self._inspection(model, task),
            }

        content = await asyncio.to_thread(read)
        status = 200 if refused is None else refused.why.status_code
        return self.studio.page("model.html.j2", status, **content)

    async def inspection(self, request: Request) -> Response:
        """Show the contents of a model, as far as known; polled during an inspection."""
        model = await self._model_of(request)
        task = request.query_params.get("task", "")
        content = await asyncio.to_thread(self._inspection, model, task)
        return self.studio.page("inspection.html.j2", model=model.view(), **content)

    async def inspect(self, request: Request) -> Response:
        """Start a task that inspects a model."""
        model = await self._model_of(request)
        out = self._result_of(model)
        await asyncio.to_thread(
            out.unlink, missing_ok=True
        )  # the old result, if the inspection is repeated
        arguments: Arguments = ["inspect", model.path, "--no-hash", "--out", out]
        task = await asyncio.to_thread(
            self.studio.tasks.start, arguments, f"Inspect {model.title}", model.address
        )
        return RedirectResponse(f"{model.address}?task={task}", 303)

    async def convert(self, request: Request) -> Response:
        """Start a task that converts a model to a new file in a model folder."""
        model, form = await self._model_of(request), await read_form(request)
        folders = [folder.absolute() for folder in self.studio.folders.models]
        try:
            arguments = convert_arguments(model, form, folders)
        except HTTPException as error:
            return await self._one(model, refused=_Refused("convert", texts_of(form), error))
        target = Path(arguments[-1])
        address = f"/models/models/{address_of(folders, target)}"
        made = TaskResult(str(target), address, f"the model {printable(target.name)}")

        def start() -> str:
            return self.studio.tasks.start(
                arguments, f"Convert {model.title}", model.address, made=made
            )

        return RedirectResponse(f"/tasks/{await asyncio.to_thread(start)}", 303)

    async def download(self, request: Request) -> Response:
        """Start a task that downloads a model by its id on the Hub."""
        form = await read_form(request)
        try:
            arguments = download_arguments(form, self.studio.folders.models)
        except HTTPException as error:
            return await self._all(typed=texts_of(form), refused=error)
        task = await asyncio.to_thread(
            self.studio.tasks.start, arguments, f"Download {arguments[-1]}", "/models"
        )
        return RedirectResponse(f"/tasks/{task}", 303)

    async def publish(self, request: Request) -> Response:
        """Start the dry run that makes the card of a model and the list of files to be sent."""
        model, form = await self._model_of(request), await read_form(request)
        try:
            arguments = publish_arguments(model, form)
        except HTTPException as error:
            return await self._one(model, refused=_Refused("publish", texts_of(form), error))
        upload = await asyncio.to_thread(self._uploads.prepare, model, arguments)
        return RedirectResponse(f"{model.address}/publish/{upload}", 303)

    async def upload(self, request: Request) -> Response:
        """Show the card and the files that would be sent, for confirmation."""
        model = await self._model_of(request)
        content = await asyncio.to_thread(self._uploads.view, model, request.path_params["upload"])
        return self.studio.page("publish.html.j2", model=model.view(), **content)

    async def upload_fragment(self, request: Request) -> Response:
        """Show the same as a part, which the page polls while the card is made."""
        model = await self._model_of(request)
        content = await asyncio.to_thread(self._uploads.view, model, request.path_params["upload"])
        return self.studio.page("publish_upload.html.j2", model=model.view(), **content)

    async def send(self, request: Request) -> Response:
        """Start a task that publishes a confirmed upload; its token is from the environment."""
        model = await self._model_of(request)
        upload = request.path_params["upload"]
        task = await asyncio.to_thread(self._uploads.send, model, upload)
        return RedirectResponse(f"/tasks/{task}", 303)

    async def ask_delete(self, request: Request) -> Response:
        """Show the runs and jobs that need a model, before it is deleted."""
        model = await self._model_of(request)

        def read() -> dict[str, Any]:
            folders = self.studio.folders
            runs = [summary.run for summary in folders.all_runs()]
            return {
                "model": model.view(),
                "folder": printable(str(model.folder)),
                **losers_of(model, runs, Queue(self.studio.queue).jobs(), folders),
            }

        return self.studio.page("delete_model.html.j2", **await asyncio.to_thread(read))

    async def delete(self, request: Request) -> Response:
        """Move a model to the trash, unless a run or job uses it now."""
        model, form = await self._model_of(request), await read_form(request)
        if form.get("sure") != "yes":
            raise HTTPException(400, "Nothing was deleted: the box was not ticked.")

        def remove() -> None:
            folders = self.studio.folders
            runs = [summary.run for summary in folders.all_runs()]
            alive = working_with(model, folders.runs, runs, Queue(self.studio.queue).jobs())
            if alive:
                raise HTTPException(
                    409, f"Nothing was deleted: the model is used now by {', '.join(alive)}."
                )
            delete(model)

        await asyncio.to_thread(remove)
        return RedirectResponse("/models", 303)

    async def _model_of(self, request: Request) -> FoundModel:
        """Return the model that an address names.

        Raises:
            HTTPException: 404 if there is none.
        """
        root, name = request.path_params["root"], request.path_params["name"]
        model = await asyncio.to_thread(find_model, self.studio.folders, root, name)
        if model is None:
            raise HTTPException(404, "This model does not exist: it was deleted, renamed or moved.")
        return model

    def _result_of(self, model: FoundModel) -> Path:
        return (self.studio.home / "models" / f"{model.key}.json").absolute()

    def _inspection(self, model: FoundModel, name: str) -> dict[str, Any]:
        """Return the stored results of an inspection, and the task of a running one."""
        task = self.studio.tasks.find(name)
        found = read_object(self._result_of(model))
        sections = {
            str(heading): {str(key): str(value) for key, value in rows.items()}
            for heading, rows in (found or {}).items()
            if isinstance(rows, dict)
        }
        return {
            "sections": sections,
            "task": None if task is None else task_view(self.studio.tasks, task),
        }


def _as_sent(refused: _Refused | None, published: Mapping[str, str]) -> dict[str, Any]:
    """Return the contents of the forms on a model's page: form -> fields, and form -> fault.

    Args:
        refused: The form that was refused; None if none was.
        published: The fields with which the model was last published.
    """
    typed: dict[str, Mapping[str, str]] = {"convert": {}, "publish": published}
    faults = dict.fromkeys(typed, "")
    if refused is not None:
        typed[refused.form], faults[refused.form] = refused.typed, refused.why.detail
    return {"typed": typed, "faults": faults}
