"""The page "New run": start from a goal, an sd-scripts command, the defaults, or another run."""

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

_MOST_BYTES = 2 << 20  # the same as for the form, all of which a command may set


def routes(studio: Studio) -> list[BaseRoute]:
    """Return the routes of this page."""
    pages = NewStartPages(studio, Drafts(studio.home / "drafts"))
    return [
        Route("/new", pages.start_page),
        Route("/new/goal", pages.goal, methods=["POST"]),
        Route("/new/command", pages.command, methods=["POST"]),
        Route("/new/blank", pages.blank, methods=["POST"]),
    ]


@dataclass(frozen=True)
class NewStartPages:
    """Answers requests to start a new run.

    Attributes:
        studio: The state of the studio.
        drafts: The stored contents of forms.
    """

    studio: Studio
    drafts: Drafts

    async def start_page(self, request: Request) -> Response:
        """Show the ways to start a run; with `from=RUN`, redirect to a copy of its settings."""
        run = request.query_params.get("from")
        if run is not None:
            draft = await asyncio.to_thread(self._copy_of, run)
            return RedirectResponse(f"/new/{draft.name}", 303)
        await asyncio.to_thread(self.studio.plans.prepare)  # while the user chooses
        earlier = self.drafts.find(request.query_params.get("draft", ""))
        return await self._start_page({} if earlier is None else earlier.about())

    async def goal(self, request: Request) -> Response:
        """Start a task that makes settings for a goal."""
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
        """Start a task that makes settings from an sd-scripts command."""
        text = (await _typed(request)).get("command", "")
        if not text.strip() or "\0" in text:
            return await self._start_page({"command": text}, {"command": "Paste a command."})

        def begin() -> Draft:
            draft = self.drafts.create(command=text)
            arguments = ["import-command", "--out", draft.imported_file, "--", text]
            self._have_made(draft, arguments, "Settings of a command")
            return draft

        draft = await asyncio.to_thread(begin)
        return RedirectResponse(f"/new/{draft.name}", 303)

    async def blank(self, _: Request) -> Response:
        """Create a draft with the default settings."""
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
        """Create a draft with the settings of a run and a new run directory.

        Masks that its images have now are used, as in settings that are made for a goal.

        Raises:
            HTTPException: 404 if there is no such run; 409 if its settings cannot be read.
        """
        run = self.studio.folders.run_of(name)
        if run is None:
            raise HTTPException(404, "This run does not exist: it was removed, renamed or moved.")
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
    """Return the text fields of a form."""
    return texts_of(await read_form(request, most_bytes=_MOST_BYTES))
