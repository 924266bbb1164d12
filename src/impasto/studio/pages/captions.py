"""The page "Captions" of a dataset: all tags and captions, edits of many at once, and undo."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from starlette.datastructures import FormData, QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from impasto.errors import RunError
from impasto.studio.caption_edits import (
    SHOWN,
    EditStore,
    PreparedEdit,
    operations_of,
    preview_of,
    shortened,
)
from impasto.studio.captions import (
    ENDINGS,
    CaptionFilter,
    CaptionReader,
    CaptionReading,
    ImageCaption,
    count_tags,
    found_tags,
    images_near,
    read_caption,
)
from impasto.studio.core import Studio
from impasto.studio.datasets import image_of
from impasto.studio.folders import address_of
from impasto.studio.forms import read_form, whole_number
from impasto.studio.pages import captions_address, dataset_in
from impasto.studio.pages.shown_dataset import Dataset, thumbnail_address
from impasto.studio.pages.tasks import task_view
from impasto.studio.verbs import ask_verb, in_own_thread

PER_PAGE = 100
_TAGS_SHOWN = 200
_TAGS_OFFERED = 1000
_LONGEST_FILTER = 1000
_MOST_FIELDS = 2000  # each selected image is a field
_MOST_BYTES = 4 << 20  # URL encoding can triple the bytes of captions
_LAST_PAGE = 10**7
_FILTERS = ("tag", "without", "contains")


def routes(studio: Studio) -> list[BaseRoute]:
    """Return the routes of this page."""
    pages = CaptionPages(studio)
    here = "/data/{dataset}/captions"
    return [
        Route(here, pages.page),
        Route(f"{here}/tags", pages.tags),
        Route(f"{here}/edits", pages.edits),
        Route(f"{here}/preview", pages.preview, methods=["POST"]),
        Route(f"{here}/apply", pages.apply, methods=["POST"]),
        Route(f"{here}/set", pages.set_one, methods=["POST"]),
        Route(f"{here}/undo", pages.undo, methods=["POST"]),
    ]


@dataclass(frozen=True)
class CaptionPages:
    """Answers requests for captions.

    Attributes:
        studio: The state of the studio.
        reader: Reads captions.
        applying: Held while an edit is started, so that a second click finds the same task.
    """

    studio: Studio
    reader: CaptionReader = field(default_factory=CaptionReader)
    applying: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def store(self) -> EditStore:
        """The store of previewed edits."""
        return EditStore(self.studio.home / "edits")

    async def page(self, request: Request) -> Response:
        """Show the captions that match the filter, a hundred per page, or that of one image."""
        dataset = await dataset_in(self.studio, request)
        content = await asyncio.to_thread(self._content, dataset, request.query_params)
        return self.studio.page("captions.html.j2", **content)

    async def tags(self, request: Request) -> Response:
        """Show the tags that contain the search text, with their counts."""
        dataset, query = await dataset_in(self.studio, request), request.query_params
        reading = await asyncio.to_thread(self.reader.read, dataset, _ending(query))
        content = await asyncio.to_thread(self._tags, dataset, reading, query)
        return self.studio.page("caption_tags.html.j2", **content)

    async def edits(self, request: Request) -> Response:
        """Show the edits that can be undone."""
        dataset = await dataset_in(self.studio, request)
        found = await self._listed(dataset)
        for edit in found:
            when = time.localtime(edit["at"]) if edit["at"] else None
            edit["when"] = time.strftime("%Y-%m-%d %H:%M", when) if when else "unknown time"
        return self.studio.page(
            "caption_edits.html.j2", edits=found, here=captions_address(self.studio, dataset)
        )

    async def preview(self, request: Request) -> Response:
        """Show the changes of an edit, and store it, so that exactly these can be applied."""
        dataset = await dataset_in(self.studio, request)
        form = await read_form(request, _MOST_FIELDS, _MOST_BYTES)
        prepared = await asyncio.to_thread(self._prepare, dataset, form)
        answer = await _answer([*prepared.bound_arguments, "--json", f"--shown={SHOWN}"])
        return self.studio.page(
            "caption_preview.html.j2",
            token=prepared.token,
            here=captions_address(self.studio, dataset),
            back=_query(form),
            **preview_of(answer),
        )

    async def apply(self, request: Request) -> Response:
        """Apply a previewed edit as a task; a second click leads to the same task."""
        dataset = await dataset_in(self.studio, request)
        form = await read_form(request, _MOST_FIELDS, _MOST_BYTES)
        async with self.applying:
            task = await asyncio.to_thread(self._apply, dataset, str(form.get("token", "")))
        return self._shown(dataset, form, task)

    def _apply(self, dataset: Path, token: str) -> str:
        """Return the task that applies a previewed edit; start it if it has not been started.

        Raises:
            HTTPException: 410 if there is no such preview, or its task has ended.
        """
        prepared, tasks = self.store.find(dataset, token), self.studio.tasks
        if prepared is None:
            raise HTTPException(410, "This preview has expired. Preview the edit again.")
        if prepared.task:
            task = tasks.find(prepared.task)
            state = None if task is None else tasks.state_of(task)
            if state is not None and state.is_alive:
                return prepared.task
            ended = "was applied already" if state is None or state.code == 0 else "failed"
            raise HTTPException(410, f"This edit {ended}. Preview it again.")
        here = captions_address(self.studio, dataset)
        name = tasks.start([*prepared.bound_arguments, *_WRITES], prepared.title, here)
        self.store.note_applied(prepared, name)
        return name

    async def set_one(self, request: Request) -> Response:
        """Write the caption of one image, as a task.

        The caption is recorded before it is compared, as by a preview, so that the task does not
        write it if it has been changed meanwhile, for example in another tab.
        """
        dataset = await dataset_in(self.studio, request)
        form = await read_form(request, _MOST_FIELDS, _MOST_BYTES)
        address = str(form.get("image", ""))
        image = await asyncio.to_thread(image_of, dataset, address)
        if image is None:
            raise HTTPException(404, "This image does not exist.")
        name, ending = image.relative_to(dataset).as_posix(), _ending(form) or ENDINGS[0]
        text = str(form.get("text", "")).replace("\r\n", "\n")
        prepared = await asyncio.to_thread(
            self.store.prepare, dataset, [{"do": "set", "text": text}], [], ending, [name]
        )
        await _answer([*prepared.bound_arguments, "--json", "--shown=1"])
        now = await asyncio.to_thread(read_caption, dataset, image, ending)
        if now is not None and now.mark != form.get("mark"):
            raise HTTPException(
                409,
                f"The caption of {image.name} was changed after this page was opened, and is now: "
                f"{shortened(now.text) or '(empty)'} Nothing was written. Open it again. Your text "
                f"is: {text or '(empty)'}",
            )
        title = f"Set the caption of {image.name}"
        return await self._started(
            dataset, [*prepared.bound_arguments, *_WRITES], title, form, {"image": address}
        )

    async def undo(self, request: Request) -> Response:
        """Undo an edit, as a task."""
        dataset = await dataset_in(self.studio, request)
        form = await read_form(request, _MOST_FIELDS, _MOST_BYTES)
        edit, at = str(form.get("edit", "")), str(form.get("at", ""))
        there = [(found["name"], str(found["at"])) for found in await self._listed(dataset)]
        if (edit, at) not in there:  # the number of an undone edit is used again
            raise HTTPException(409, "This edit has been undone meanwhile. Nothing was changed.")
        arguments = ["dataset", "undo", str(dataset.absolute()), edit]
        return await self._started(dataset, arguments, f"Undo edit {edit}", form)

    async def _listed(self, dataset: Path) -> Any:
        return await _answer(["dataset", "undo", dataset.absolute(), "--list", "--json"])

    async def _started(
        self,
        dataset: Path,
        arguments: Sequence[str],
        title: str,
        form: FormData,
        more: Mapping[str, str] | None = None,
    ) -> Response:
        """Start a task, and redirect to the page, which shows it."""
        here = captions_address(self.studio, dataset)
        task = await asyncio.to_thread(self.studio.tasks.start, arguments, title, here)
        return self._shown(dataset, form, task, more)

    def _shown(
        self, dataset: Path, form: FormData, task: str, more: Mapping[str, str] | None = None
    ) -> Response:
        """Redirect to the page, with a task and with the filter of the submitted form."""
        query = {**_query(form), **(more or {}), "task": task}
        return RedirectResponse(f"{captions_address(self.studio, dataset)}?{urlencode(query)}", 303)

    def _prepare(self, dataset: Path, form: FormData) -> PreparedEdit:
        ending = _ending(form) or ENDINGS[0]
        rows = {n: [str(v) for v in form.getlist(n)] for n in ("do", "what", "by", "at", "text")}
        try:
            operations = operations_of(rows)
        except RunError as error:
            raise HTTPException(400, str(error)) from error
        if form.get("which") == "filter":
            return self.store.prepare(dataset, operations, _filter(form).options(), ending)
        paths = [image_of(dataset, str(address)) for address in form.getlist("image")]
        names = [path.relative_to(dataset).as_posix() for path in paths if path is not None]
        if not names:
            raise HTTPException(400, "Select images, or choose all that match the filter.")
        return self.store.prepare(dataset, operations, [], ending, names)

    def _content(self, dataset: Path, query: QueryParams) -> dict[str, Any]:
        reading = self.reader.read(dataset, _ending(query))
        ending, captions = reading.ending, reading.captions
        chosen = _filter(query).of(captions)
        number = _page_number(query, len(chosen))
        alone = self._alone(dataset, captions, query.get("image"))
        shown = [alone] if alone else chosen[(number - 1) * PER_PAGE : number * PER_PAGE]
        here = captions_address(self.studio, dataset)
        kept = {"ending": ending, **{n: query[n] for n in _FILTERS if query.get(n)}}
        task = self.studio.tasks.find(query.get("task", ""))
        of = Dataset(self.studio, dataset)
        derived = of.derived
        return {
            **self._tags(dataset, reading, query),
            "title": dataset.name,
            "here": here,
            "data": here.removesuffix("/captions"),
            "endings": ENDINGS,
            "filter": _filter(query),
            "total": len(captions),
            "number": len(chosen),
            "page": number,
            "pages": max(1, -(-len(chosen) // PER_PAGE)),
            "query": urlencode(kept),
            "rows": [_row(of, derived, caption, is_whole=alone is not None) for caption in shown],
            "alone": alone is not None,
            "near": {} if alone is None else images_near(dataset, captions, chosen, alone),
            "task": task_view(self.studio.tasks, task) if task is not None else None,
        }

    def _alone(
        self, dataset: Path, captions: Sequence[ImageCaption], address: str | None
    ) -> ImageCaption | None:
        if address is None:
            return None
        image = image_of(dataset, address)
        found = next((caption for caption in captions if caption.image == image), None)
        if found is None:
            raise HTTPException(404, "This image does not exist: it was removed or renamed.")
        return found

    def _tags(
        self, dataset: Path, reading: CaptionReading, query: Mapping[str, str]
    ) -> dict[str, Any]:
        counts = count_tags(reading.captions)
        by_name = query.get("sort") == "name"
        found = found_tags(counts, query.get("find", "")[:_LONGEST_FILTER], by_name=by_name)
        usual = [tag for tag, _ in counts.most_common(_TAGS_OFFERED) if len(tag) < _LONGEST_FILTER]
        return {
            "here": captions_address(self.studio, dataset),
            "ending": reading.ending,
            "tags": [(tag, count, shortened(tag, 100)) for tag, count in found[:_TAGS_SHOWN]],
            "tag_number": len(found),
            "offered": usual,
            "sort": "name" if by_name else "count",
            "find": query.get("find", ""),
        }


_WRITES = ("--yes", "--shown=0")


async def _answer(arguments: Sequence[str | Path]) -> Any:
    try:
        return await in_own_thread(ask_verb, arguments)
    except RunError as error:
        raise HTTPException(400, str(error)) from error


def _row(of: Dataset, derived: Path, caption: ImageCaption, *, is_whole: bool) -> dict[str, str]:
    return {
        "address": address_of([of.path], caption.image),
        "thumbnail": thumbnail_address(of, derived, caption.image),
        "name": caption.name,
        "mark": caption.mark,
        "text": caption.text if is_whole else shortened(caption.text),
        "fault": caption.fault,
    }


def _ending(values: Mapping[str, Any]) -> str:
    """Return the requested caption extension, or an empty text if it is missing or unknown."""
    return next((ending for ending in ENDINGS if values.get("ending") == ending), "")


def _filter(values: Mapping[str, Any]) -> CaptionFilter:
    tag, without, text = (str(values.get(name, "")).strip() for name in _FILTERS)
    if max(map(len, (tag, without, text))) > _LONGEST_FILTER or "\0" in tag + without + text:
        raise HTTPException(400, f"A filter must have at most {_LONGEST_FILTER:,} characters.")
    return CaptionFilter(tag, without, text)


def _query(form: FormData) -> dict[str, str]:
    """Return the query for the filter and the page in a submitted form."""
    names = ("ending", *_FILTERS, "page")
    return {name: str(form[name]) for name in names if form.get(name)}


def _page_number(query: QueryParams, number: int) -> int:
    asked = whole_number(query.get("page", ""), _LAST_PAGE) or 1
    return min(max(1, asked), max(1, -(-number // PER_PAGE)))
