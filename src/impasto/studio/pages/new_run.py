"""The form of a new run, its plan, and its start; the page before it is in `new_start.py`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from impasto import invocation
from impasto.config.fields import fields_of
from impasto.config.setting_files import read_toml
from impasto.errors import ConfigError, ImpastoError
from impasto.parsing import printable
from impasto.progress import counted
from impasto.runs import RunDirectory
from impasto.runs.queue import Queue
from impasto.studio.choices import MOST, image_folders, model_paths
from impasto.studio.core import Studio
from impasto.studio.drafts import Draft, Drafts
from impasto.studio.forms import read_form, texts_of
from impasto.studio.new_form import Examined, examine, form_sections
from impasto.studio.pages.new_views import masks_taken, plan_view
from impasto.studio.pages.queue_views import is_worked_on
from impasto.studio.pages.tasks import task_view
from impasto.studio.plans import Plans
from impasto.studio.starting import choose_file, write_settings
from impasto.studio.tasks import TaskResult

_MOST_BYTES = 2 << 20
_MOST_FIELDS = 400


def routes(studio: Studio) -> list[BaseRoute]:
    """Return the routes of these pages."""
    pages = NewRunPages(studio, Drafts(studio.home / "drafts"), studio.plans)
    return [
        Route("/new/{draft}", pages.form_page),
        Route("/new/{draft}/waiting", pages.waiting),
        Route("/new/{draft}/check", pages.check, methods=["POST"]),
        Route("/new/{draft}/plan", pages.plan),
        Route("/new/{draft}/save", pages.save, methods=["POST"]),
        Route("/new/{draft}/start", pages.start, methods=["POST"]),
        Route("/new/{draft}/queue", pages.enqueue, methods=["POST"]),
        Route("/new/{draft}/started", pages.started),
        Route("/new/{draft}/started/part", pages.started_fragment),
    ]


@dataclass(frozen=True)
class NewRunPages:
    """Answers requests for new runs.

    Attributes:
        studio: The state of the studio.
        drafts: The stored contents of forms.
        plans: Makes plans of drafts.
        beginning: Held while a run is started, so that a second click finds the same run.
    """

    studio: Studio
    drafts: Drafts
    plans: Plans
    beginning: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def form_page(self, request: Request) -> Response:
        """Show the form, or the task that is making its settings."""
        draft = self._draft_of(request)
        fields = draft.fields()
        await asyncio.to_thread(self.plans.prepare)
        if not fields:
            view = await asyncio.to_thread(self._task_view, draft)
            return self.studio.page("new_wait.html.j2", draft=draft.name, task=view)
        content = await asyncio.to_thread(self._form, fields)
        masks = masks_taken(draft.about().get("masks"), fields)
        return self.studio.page("new_form.html.j2", draft=draft.name, masks=masks, **content)

    async def waiting(self, request: Request) -> Response:
        """Show the state of the task that makes the settings; redirect to the form at its end."""
        draft = self._draft_of(request)

        def look() -> dict[str, Any] | None:
            view = self._task_view(draft)
            if view["state"] == "done":
                draft.keep_fields(fields_of(read_toml(draft.imported_file)))
                return None
            return view

        view = await asyncio.to_thread(look)
        if view is None:
            return Response(headers={"hx-redirect": f"/new/{draft.name}"})
        return self.studio.page("new_wait_part.html.j2", draft=draft.name, task=view)

    async def check(self, request: Request) -> Response:
        """Store the typed values, show their faults, and request a plan of them."""
        draft, typed = self._draft_of(request), await _typed(request)

        def look() -> Examined:
            draft.keep_fields(typed)
            found = self._examine(typed)
            if found.config is None:
                self.plans.forget(draft)
            else:
                self.plans.ask_for(draft, found.text)
            return found

        found = await asyncio.to_thread(look)
        return await self._panel(draft, found, typed)

    async def plan(self, request: Request) -> Response:
        """Show the newest plan; the form polls this while the plan is being made."""
        draft = self._draft_of(request)
        state = await asyncio.to_thread(self.plans.state_of, draft)
        return self.studio.page("new_plan.html.j2", draft=draft.name, plan=plan_view(state))

    async def save(self, request: Request) -> Response:
        """Write the settings to a file without starting a run."""
        draft, typed = self._draft_of(request), await _typed(request)
        found = await asyncio.to_thread(self._kept, draft, typed)
        if found.config is None or found.folder_fault:
            return self._answer(_refusal(found), refused=True)
        try:
            file = choose_file(typed, self.studio.folders)
            await asyncio.to_thread(write_settings, file, found.text)
        except ConfigError as error:
            return self._answer(str(error), refused=True)
        command = invocation.command("train", file)
        return self._answer(f"Wrote {file}.", command=command)

    async def start(self, request: Request) -> Response:
        """Write the settings and start the run in a separate process, unless it is running."""
        draft, typed = self._draft_of(request), await _typed(request)
        async with self.beginning:
            try:
                refusal = await asyncio.to_thread(self._begin, draft, typed)
            except ImpastoError as error:
                refusal = str(error)
        if refusal:
            return self._answer(refusal, refused=True)
        return Response(headers={"hx-redirect": f"/new/{draft.name}/started"})

    async def enqueue(self, request: Request) -> Response:
        """Add the run to the end of the queue."""
        draft, typed = self._draft_of(request), await _typed(request)
        found = await asyncio.to_thread(self._kept, draft, typed)
        if found.config is None or found.folder_fault:
            return self._answer(_refusal(found), refused=True)
        queue, name = Queue(self.studio.queue), found.config.output_dir.name
        try:
            job = await asyncio.to_thread(queue.add, found.text, name, Path.cwd())
        except ImpastoError as error:
            return self._answer(str(error), refused=True)
        is_done = await asyncio.to_thread(is_worked_on, self.studio)
        then = (
            ""
            if is_done
            else " No process works on the queue yet: press Start working on its page."
        )
        return self._answer(f"Added to the queue as job {job.number}.{then}", link="/queue")

    async def started(self, request: Request) -> Response:
        """Show a run that is starting; redirect to its page once its run directory exists."""
        draft = self._draft_of(request)
        address, view = await asyncio.to_thread(self._begun, draft)
        if address:
            return RedirectResponse(address, 303)
        name = Path(str(draft.about().get("run", ""))).name
        return self.studio.page("new_started.html.j2", draft=draft.name, task=view, run=name)

    async def started_fragment(self, request: Request) -> Response:
        """Show the same as a part, which the page polls."""
        draft = self._draft_of(request)
        address, view = await asyncio.to_thread(self._begun, draft)
        if address:
            return Response(headers={"hx-redirect": address})
        return self.studio.page("new_started_part.html.j2", draft=draft.name, task=view)

    def _draft_of(self, request: Request) -> Draft:
        draft = self.drafts.find(request.path_params["draft"])
        if draft is None:
            raise HTTPException(404, "This form no longer exists: only the newest ones are kept.")
        return draft

    def _task_view(self, draft: Draft) -> dict[str, Any]:
        task = self.studio.tasks.find(str(draft.about().get("task", "")))
        if task is None:
            raise HTTPException(404, "The task of this form no longer exists. Start again.")
        return task_view(self.studio.tasks, task)

    def _form(self, fields: dict[str, str]) -> dict[str, Any]:
        folders = self.studio.folders
        return {
            **form_sections(fields),
            "images": image_folders(folders.data),
            "models": model_paths(folders.models),
            "most": MOST,
            "folders": list(enumerate(map(str, folders.runs))),
            "first": printable(str(folders.runs[0])),
            "folder": fields.get("to.folder", "0"),
            "file": fields.get("to.name", ""),
            "suggested": f"{Path(fields.get('output_dir') or 'my-run').name}",
        }

    def _examine(self, typed: dict[str, str]) -> Examined:
        return examine(typed, [*self.studio.folders.runs])

    def _kept(self, draft: Draft, typed: dict[str, str]) -> Examined:
        draft.keep_fields(typed)
        return self._examine(typed)

    async def _panel(self, draft: Draft, found: Examined, typed: dict[str, str]) -> Response:
        state = await asyncio.to_thread(self.plans.state_of, draft)
        try:
            command = invocation.command("train", choose_file(typed, self.studio.folders))
        except ConfigError:
            command = ""
        return self.studio.page(
            "new_panel.html.j2",
            draft=draft.name,
            faults=found.all_faults,
            text=found.text,
            plan=None if found.config is None else plan_view(state),
            place="" if found.config is None else printable(str(found.config.output_dir)),
            command=command,
        )

    def _begin(self, draft: Draft, typed: dict[str, str]) -> str:
        """Start the run of a form; return the reason for a refusal, or an empty text if started.

        Raises:
            ImpastoError: The settings cannot be written, or the process cannot be started.
        """
        found = self._kept(draft, typed)
        if found.config is None:
            return _refusal(found)
        run = found.config.output_dir.absolute()
        if self._is_under_way(draft, run):
            return ""
        if found.folder_fault:
            return _refusal(found)
        file = choose_file(typed, self.studio.folders)
        write_settings(file, found.text, same_is_fine=True)
        self.plans.forget(draft)  # planning would take time and memory from the run
        self.plans.rest()
        title, back = f"Train {run.name}", f"/new/{draft.name}/started"
        address = f"/runs/{self.studio.folders.name_of(RunDirectory(run))}"
        made = TaskResult(str(run), address, f"the run {printable(run.name)}")
        task = self.studio.tasks.start(["train", file], title, back, made=made)
        draft.note(task=task, run=str(run))
        return ""

    def _is_under_way(self, draft: Draft, run: Path) -> bool:
        """Return whether the task that was started from a form is training this run."""
        about, tasks = draft.about(), self.studio.tasks
        task = tasks.find(str(about.get("task", "")))
        return about.get("run") == str(run) and task is not None and tasks.state_of(task).is_alive

    def _answer(
        self, message: str, *, command: str = "", link: str = "", refused: bool = False
    ) -> Response:
        return self.studio.page(
            "new_answer.html.j2", message=message, command=command, link=link, refused=refused
        )

    def _begun(self, draft: Draft) -> tuple[str, dict[str, Any] | None]:
        """Return the address of the started run, empty until its directory exists; and its task."""
        run_path = draft.about().get("run")
        if not isinstance(run_path, str):
            raise HTTPException(404, "Nothing was started from this form.")
        run = RunDirectory(Path(run_path))
        view = self._task_view(draft)
        if run.is_there() and view["state"] != "starting":
            return f"/runs/{self.studio.folders.name_of(run)}", view
        return "", view


async def _typed(request: Request) -> dict[str, str]:
    """Return the text fields of a form.

    Raises:
        HTTPException: 413 if it is larger than settings can be.
    """
    return texts_of(await read_form(request, _MOST_FIELDS, _MOST_BYTES))


def _refusal(found: Examined) -> str:
    """Return a message that names the settings to correct; each fault is shown at its field."""
    first, *others = found.all_faults.items()
    path, message = first
    if not path:
        return f"Not yet: {message}."
    more = f" and {counted(len(others), 'other settings')}" if others else ""
    return f"Not yet: {path}{more} must be corrected first."
