"""The page "New run": how one begins, from a goal, an old command, the defaults, or another run."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from impasto import presence
from impasto.config.goals import GOALS
from impasto.errors import ConfigError
from impasto.studio.choices import MOST
from impasto.studio.core import Studio
from impasto.studio.drafts import Draft, Drafts
from impasto.studio.forms import read_form, texts_of
from impasto.studio.found_masks import FIELD as MASKS
from impasto.studio.found_masks import unused_masks_of
from impasto.studio.named_choices import Choice, dataset_choices, model_choices
from impasto.studio.starting import fields_of_run, goal_arguments, goal_faults, named_paths

_MOST_BYTES = 2 << 20  # as the form itself, which a command may fill


def routes(studio: Studio) -> list[BaseRoute]:
    """The routes of this page."""
    pages = NewStartPages(studio, Drafts(studio.home / "drafts"))
    return [
        Route("/new", pages.start_page),
        Route("/new/goal", pages.goal, methods=["POST"]),
        Route("/new/command", pages.command, methods=["POST"]),
        Route("/new/blank", pages.blank, methods=["POST"]),
    ]


@dataclass(frozen=True)
class NewStartPages:
    """Answers requests for runs that are to be begun.

    Attributes:
        studio: What they work with.
        drafts: What was typed.
    """

    studio: Studio
    drafts: Drafts

    async def start_page(self, request: Request) -> Response:
        """How a run may begin; with `from=RUN`, a copy of that run's settings at once."""
        run = request.query_params.get("from")
        if run is not None:
            draft = await asyncio.to_thread(self._copy_of, run)
            return RedirectResponse(f"/new/{draft.name}", 303)
        await asyncio.to_thread(self.studio.plans.prepare)  # while the person chooses
        earlier = self.drafts.find(request.query_params.get("draft", ""))
        return await self._start_page({} if earlier is None else earlier.about())

    async def goal(self, request: Request) -> Response:
        """Have settings made for a goal."""
        typed = await _typed(request)
        folders = self.studio.folders

        def look() -> tuple[dict[str, str], dict[str, str]]:
            found, faults = named_paths(typed, folders)
            return found, {**goal_faults(found, folders), **faults}

        found, faults = await asyncio.to_thread(look)
        if faults:
            return await self._start_page({"goal": typed}, faults)

        def begin() -> Draft:
            draft = self.drafts.create(goal=typed)
            self._have_made(draft, goal_arguments(found, draft, folders), "Settings")
            return draft

        draft = await asyncio.to_thread(begin)
        return RedirectResponse(f"/new/{draft.name}", 303)

    async def command(self, request: Request) -> Response:
        """Have settings made of a command of sd-scripts."""
        text = (await _typed(request)).get("command", "")
        if not text.strip() or "\0" in text:
            return await self._start_page({"command": text}, {"command": "Paste a command here."})

        def begin() -> Draft:
            draft = self.drafts.create(command=text)
            arguments = ["import-command", "--out", draft.imported_file, "--", text]
            self._have_made(draft, arguments, "Settings of a command")
            return draft

        draft = await asyncio.to_thread(begin)
        return RedirectResponse(f"/new/{draft.name}", 303)

    async def blank(self, _: Request) -> Response:
        """Begin with the defaults."""
        fields = {"output_dir": str(presence.free_path(self.studio.folders.runs[0] / "my-run"))}
        draft = await asyncio.to_thread(self.drafts.create, fields)
        return RedirectResponse(f"/new/{draft.name}", 303)

    async def _start_page(
        self, typed: dict[str, Any], faults: dict[str, str] | None = None
    ) -> Response:
        folders = self.studio.folders

        def look() -> tuple[list[Choice], list[Choice], list[dict[str, str]]]:
            runs = [
                {"title": s.run.path.name, "address": folders.name_of(s.run)}
                for s in folders.all_runs()[:20]
            ]
            return dataset_choices(folders), model_choices(folders), runs

        images, models, runs = await asyncio.to_thread(look)
        goal = typed.get("goal")
        content = {
            "goals": [{"key": key, "title": g.title, "text": g.text} for key, g in GOALS.items()],
            "typed": goal if isinstance(goal, dict) else {},
            "command": str(typed.get("command", "")),
            "images": images,
            "models": models,
            "most": MOST,
            "runs": runs,
            "faults": faults or {},
        }
        return self.studio.page("new.html.j2", 422 if faults else 200, **content)

    def _copy_of(self, name: str) -> Draft:
        """A draft with the settings of a run, and a run directory of its own.

        Masks that its images have by now are used, as by settings that are made for a goal.

        Raises:
            HTTPException: There is no such run: 404; its settings cannot be read: 409.
        """
        run = self.studio.folders.run_of(name)
        if run is None:
            raise HTTPException(404, "This run is not there: it was removed, renamed or moved.")
        try:
            fields = fields_of_run(run)
        except (ConfigError, ValueError) as error:
            raise HTTPException(409, f"The run's settings cannot be read: {error}") from error
        masks = unused_masks_of(fields, self.studio.folders.data)
        if masks is None:
            return self.drafts.create(fields)
        told = {"field": masks.field, "number": masks.number, "images": masks.images}
        return self.drafts.create({**fields, MASKS: masks.field}, masks=told)

    def _have_made(self, draft: Draft, arguments: list[Any], title: str) -> None:
        back = f"/new/{draft.name}"
        draft.note(task=self.studio.tasks.start(arguments, title, back))


async def _typed(request: Request) -> dict[str, str]:
    """The text fields of a form."""
    return texts_of(await read_form(request, most_bytes=_MOST_BYTES))
