"""Parts of the start page: the line on the machine, and the demo; `runs.py` has its runs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from impasto.errors import ImpastoError
from impasto.parsing import printable
from impasto.presence import free_path
from impasto.studio.core import Studio
from impasto.studio.folders import address_of
from impasto.studio.machine import Machine
from impasto.studio.tasks import TaskResult
from impasto.studio.verbs import in_own_thread


def routes(studio: Studio) -> list[BaseRoute]:
    """Return the routes of these parts."""
    page = StartPage(studio, studio.machine)
    return [
        Route("/parts/machine", page.machine_fragment),
        Route("/demo", page.demo, methods=["POST"]),
    ]


@dataclass(frozen=True)
class StartPage:
    """Answers requests for the start page, except for its list of runs.

    Attributes:
        studio: The state of the studio.
        machine: Examines the machine.
        looking: Held while a process examines the machine, so that there is only one at a time.
        beginning: Held while the demo is started, so that a second click finds the same task.
    """

    studio: Studio
    machine: Machine
    looking: asyncio.Lock = field(default_factory=asyncio.Lock)
    beginning: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def machine_fragment(self, _: Request) -> Response:
        """Show the facts about the machine in a line, and advice about it."""
        async with self.looking:
            found = await asyncio.to_thread(self.machine.remembered)
            if found is None:
                try:
                    found = await in_own_thread(self.machine.examine)
                except ImpastoError as error:
                    return self.studio.page("machine.html.j2", facts=[], advice=[str(error)])
        return self.studio.page("machine.html.j2", **_machine_view(found))

    async def demo(self, _: Request) -> Response:
        """Train the demo in a new run directory, unless it is being trained."""
        async with self.beginning:
            name = await asyncio.to_thread(self._demo_task)
        return RedirectResponse(f"/tasks/{name}", 303)

    def _demo_task(self) -> str:
        """Return the name of the task that trains the demo; start one if none is running."""
        tasks = self.studio.tasks
        for task in tasks.newest("demo"):
            if tasks.state_of(task).is_alive:
                return task.path.name
        folder = self.studio.folders.runs[0]
        run = free_path(folder / "impasto-demo")
        made = TaskResult(
            str(run.absolute()),
            f"/runs/{address_of(self.studio.folders.runs, run)}",
            f"the run {printable(run.name)}",
        )
        return tasks.start(["demo", "--out", run.absolute()], "The demo", "/", folder, made)


def _machine_view(found: Mapping[str, Any]) -> dict[str, Any]:
    facts = found.get("facts", {})
    gpus = [f"{g['name']}, {g['free_gib']} of {g['memory_gib']} GiB free" for g in facts["gpus"]]
    return {
        "facts": [
            "; ".join(gpus) or "no GPU that PyTorch can use",
            f"{found['free_memory_gib']} of {facts['memory_gib']} GiB of RAM free",
            f"{found['free_disk_gib']} GiB of disk free",
        ],
        "advice": found["advice"],
    }
