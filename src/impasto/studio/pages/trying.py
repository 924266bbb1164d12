"""The page "Try models": taggers and captioners side by side before one runs on all images."""

from __future__ import annotations

import asyncio
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from impasto.errors import ConfigError
from impasto.parsing import read_object
from impasto.progress import counted
from impasto.studio.caption_edits import shortened
from impasto.studio.core import Studio
from impasto.studio.datasets import image_files
from impasto.studio.forms import read_form
from impasto.studio.model_names import offered_models, why_not_offered
from impasto.studio.pages import captions_address, dataset_in
from impasto.studio.pages.shown_dataset import Dataset, thumbnail_address
from impasto.studio.pages.tasks import task_view

MODELS = 3
SAMPLE = 12

_TOKEN = re.compile(r"[0-9a-f]{32}", re.ASCII)
_EXISTING = ("missing", "overwrite", "append")
_VERBS = {"tagger": "tag", "captioner": "caption"}
_LONGEST_PROMPT = 4000
_NOTHING: dict[str, Any] = {"task": None, "tried": "", "rows": []}


def routes(studio: Studio) -> list[BaseRoute]:
    """Return the routes of this page."""
    pages = TryPages(studio)
    here = "/data/{dataset}/captions/try"
    return [
        Route(here, pages.page),
        Route(here, pages.start, methods=["POST"]),
        Route(f"{here}/{{tried}}/part", pages.fragment),
        Route(f"{here}/all", pages.run_on_all, methods=["POST"]),
    ]


@dataclass(frozen=True)
class TryPages:
    """Answers requests to try models.

    Attributes:
        studio: The state of the studio.
    """

    studio: Studio

    async def page(self, request: Request) -> Response:
        """Show the form, and the results of the models that were tried."""
        dataset = await dataset_in(self.studio, request)
        query = request.query_params
        tried = await asyncio.to_thread(
            self._tried, dataset, query.get("tried", ""), query.get("task", "")
        )
        return await self._page(dataset, tried, {})

    async def _page(
        self, dataset: Path, tried: dict[str, Any], faults: dict[str, str], status: int = 200
    ) -> Response:
        offered, number = await asyncio.to_thread(
            lambda: (offered_models(self.studio.folders.models), len(image_files(dataset)))
        )
        return self.studio.page(
            "try.html.j2",
            status,
            title=dataset.name,
            here=captions_address(self.studio, dataset),
            offered=offered,
            folders=", ".join(map(str, self.studio.folders.models)),
            models=MODELS,
            sample=counted(min(SAMPLE, number), "images"),
            number=number,
            most=SAMPLE,
            faults=faults,
            **tried,
        )

    async def fragment(self, request: Request) -> Response:
        """Show the results so far, a part that the page polls while the models run."""
        dataset = await dataset_in(self.studio, request)
        task = request.query_params.get("task", "")
        tried = await asyncio.to_thread(self._tried, dataset, request.path_params["tried"], task)
        return self.studio.page(
            "tried.html.j2", here=captions_address(self.studio, dataset), **tried
        )

    async def start(self, request: Request) -> Response:
        """Try up to three models on twelve images, as a task."""
        dataset, form = await dataset_in(self.studio, request), await read_form(request)
        chosen, faults = [], dict[str, str]()
        asked = [f"{n}" for n in range(1, MODELS + 1) if str(form.get(f"model-{n}", "")).strip()]
        for number in asked:
            try:
                chosen.append(self._model(form, number))
            except ConfigError as error:
                faults[number] = str(error)
        if not asked:
            faults["1"] = "Enter a model: one of the listed names, a Hub id, or a folder."
        if faults:
            return await self._page(dataset, {**_NOTHING, "columns": _typed(form)}, faults, 400)
        token = secrets.token_hex(16)
        out = (self.studio.home / "tried" / f"{token}.json").absolute()
        arguments = [
            "dataset",
            "try",
            str(dataset.absolute()),
            f"--sample={SAMPLE}",
            f"--out={out}",
        ]
        for kind, model, setting in chosen:
            arguments += [f"--{kind}", model, setting]
        here = f"{captions_address(self.studio, dataset)}/try"
        images = min(SAMPLE, len(await asyncio.to_thread(image_files, dataset)))
        names = ", ".join(_short(model) for _, model, _ in chosen)
        title = f"Try {names} on {counted(images, 'images')}"
        return await self._started(arguments, title, here, {"tried": token})

    async def run_on_all(self, request: Request) -> Response:
        """Run one model on all images, as a task."""
        dataset, form = await dataset_in(self.studio, request), await read_form(request)
        try:
            kind, model, setting = self._model(form, "0")
        except ConfigError as error:
            raise HTTPException(400, str(error)) from error
        existing = str(form.get("existing", ""))
        if existing not in _EXISTING:
            raise HTTPException(400, "Choose what to do with existing captions.")
        arguments = ["dataset", _VERBS[kind], str(dataset.absolute()), f"--existing={existing}"]
        arguments += [f"--model={model}"]
        if kind == "captioner" and setting:
            arguments.append(f"--prompt={setting}")
        if kind == "tagger" and setting != "default":
            arguments.append(f"--threshold={setting}")
        here = captions_address(self.studio, dataset)
        return await self._started(arguments, f"{_short(model)} on {dataset.name}", here, {})

    async def _started(
        self, arguments: list[str], title: str, here: str, query: dict[str, str]
    ) -> Response:
        home = self.studio.home.absolute()
        task = await asyncio.to_thread(self._start, arguments, title, here, home)
        return RedirectResponse(f"{here}?{urlencode({**query, 'task': task})}", 303)

    def _start(self, arguments: list[str], title: str, back: str, home: Path) -> str:
        home.mkdir(
            parents=True, exist_ok=True
        )  # from this folder, an id on the Hub cannot be taken for a path
        return self.studio.tasks.start(arguments, title, back, home)

    def _model(self, form: FormData, number: str) -> tuple[str, str, str]:
        """Return the kind, model and setting in a row of a form.

        Raises:
            ConfigError: A value is invalid; the message has the reason.
        """
        kind, model = str(form.get(f"kind-{number}", "")), str(form.get(f"model-{number}", ""))
        setting = str(form.get(f"setting-{number}", "")).strip()
        model = model.strip()
        if kind not in _VERBS:
            raise ConfigError("The kind must be tagger or captioner.")
        if reason := why_not_offered(model, kind, self.studio.folders.models):
            raise ConfigError(f"{reason[:1].upper()}{reason[1:]}.")
        if kind == "tagger" and not _is_threshold(setting or "default"):
            raise ConfigError(
                "The threshold must be a number from 0 to 1, or default, balance or model."
            )
        if len(setting) > _LONGEST_PROMPT or "\0" in setting:
            raise ConfigError(f"A prompt must have at most {_LONGEST_PROMPT:,} characters.")
        return kind, model, setting or ("default" if kind == "tagger" else "")

    def _tried(self, dataset: Path, token: str, task_name: str) -> dict[str, Any]:
        task = self.studio.tasks.find(task_name)
        view = task_view(self.studio.tasks, task) if task is not None else None
        answer: dict[str, Any] = {}
        if _TOKEN.fullmatch(token):
            answer = read_object(self.studio.home / "tried" / f"{token}.json") or {}
        columns = [
            {"words": {}, "error": "", **column, "short": _short(column["model"])}
            for column in answer.get("models", ())
        ]
        if view is not None and any(column["error"] for column in columns):
            view |= {"messages": _others(view["messages"], columns), "printed": []}
        of = Dataset(self.studio, dataset)
        derived = of.derived
        rows = [
            {
                "name": name,
                "thumbnail": thumbnail_address(of, derived, dataset / name),
                "words": [shortened(column["words"].get(name, "")) for column in columns],
            }
            for name in answer.get("images", ())
        ]
        return {"task": view, "tried": token, "columns": columns, "rows": rows}


def _others(messages: list[tuple[str, str]], columns: list[dict[str, Any]]) -> list[Any]:
    """Return the messages of a task without those that the table of results shows."""
    errors = [column["error"] for column in columns if column["error"]]
    return [(kind, text) for kind, text in messages if not any(e in text for e in errors)]


def _typed(form: FormData) -> list[dict[str, Any]]:
    """Return the typed values as columns, from which the form is filled in; without results."""
    names = ("kind", "model", "setting")
    rows = ({key: str(form.get(f"{key}-{n}", "")) for key in names} for n in range(1, MODELS + 1))
    return [*rows]


def _short(model: str) -> str:
    """Return the heading for a model; for a folder, its name."""
    return Path(model).name if Path(model).is_absolute() else model


def _is_threshold(text: str) -> bool:
    if text in ("default", "balance", "model"):
        return True
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False
