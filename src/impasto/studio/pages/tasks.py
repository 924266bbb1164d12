"""The pages of tasks: the commands that the studio has started, and their states and output."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from impasto import presence
from impasto.invocation import command
from impasto.parsing import printable
from impasto.runs import RunDirectory
from impasto.runs.tasks import TaskDirectory
from impasto.studio.core import Studio
from impasto.studio.tasks import Tasks

_MESSAGES = 40


def routes(studio: Studio) -> list[BaseRoute]:
    """Return the routes of these pages."""
    pages = TaskPages(studio)
    return [
        Route("/tasks", pages.all),
        Route("/tasks/{task}", pages.one),
        Route("/tasks/{task}/part", pages.fragment),
        Route("/tasks/{task}/stop", pages.stop, methods=["POST"]),
    ]


@dataclass(frozen=True)
class TaskPages:
    """Answers requests for tasks.

    Attributes:
        studio: The state of the studio.
    """

    studio: Studio

    async def all(self, _: Request) -> Response:
        """Show all tasks, the newest first."""

        def read() -> list[dict[str, Any]]:
            return [task_view(self.studio.tasks, task) for task in self.studio.tasks.all()]

        return self.studio.page("tasks.html.j2", tasks=await asyncio.to_thread(read))

    async def one(self, request: Request) -> Response:
        """Show a task with its output."""
        return await self._shown(request, "task.html.j2")

    async def fragment(self, request: Request) -> Response:
        """Show the state of a task, a part that pages poll while it is running."""
        return await self._shown(request, "task_state.html.j2")

    async def stop(self, request: Request) -> Response:
        """Ask a task to stop."""
        task = self._task_of(request)
        await asyncio.to_thread(self.studio.tasks.stop, task)
        return await self._shown(request, "task_state.html.j2")

    async def _shown(self, request: Request, template: str) -> Response:
        task = self._task_of(request)
        view = await asyncio.to_thread(task_view, self.studio.tasks, task)
        return self.studio.page(template, task=view)

    def _task_of(self, request: Request) -> TaskDirectory:
        task = self.studio.tasks.find(request.path_params["task"])
        if task is None:
            raise HTTPException(404, "This task no longer exists: only the newest ones are kept.")
        return task


def task_view(tasks: Tasks, task: TaskDirectory) -> dict[str, Any]:
    """Return the variables of `task_state.html.j2` for a task; any page can include it."""
    state, about = tasks.state_of(task), task.description()
    began = about.get("started_at")
    return {
        "name": task.path.name,
        "title": str(about.get("title", "A task")),
        "back": str(about.get("back", "/")),
        "command": printable(command(*about.get("words", ()))),
        "made": _made_view(about.get("made"), is_done=state.state == "done"),
        "when": time.strftime("%Y-%m-%d %H:%M", time.localtime(began)) if began else "",
        "state": state.state,
        "is_alive": state.is_alive,
        "stage": state.stage,
        "messages": state.messages[-_MESSAGES:],
        "printed": task.last_lines(),
    }


def _made_view(made: Any, *, is_done: bool) -> dict[str, Any] | None:
    """Return the link to a task's result once it has a page: for a run, at its start."""
    if not isinstance(made, Mapping):
        return None
    path = Path(str(made.get("path")))
    is_run = RunDirectory(path).is_there()
    if not is_run and not (is_done and presence.exists(path)):
        return None
    return {"address": str(made["address"]), "title": str(made["title"]), "is_run": is_run}
