"""The page "Start": the machine in a line, the demo, and the runs that `pages/runs.py` lists."""

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
from impasto.studio.tasks import Made
from impasto.studio.verbs import in_own_thread


def routes(studio: Studio) -> list[BaseRoute]:
    """The routes of this page."""
    page = StartPage(studio, studio.machine)
    return [
        Route("/parts/machine", page.machine_fragment),
        Route("/demo", page.demo, methods=["POST"]),
    ]


@dataclass(frozen=True)
class StartPage:
    """Answers requests for the start page, but for its list of runs.

    Attributes:
        studio: What it works with.
        machine: What the machine has.
        looking: Held while a process looks at the machine: one at a time is enough.
        beginning: Held while the demo is started: a second click leads to the same one.
    """

    studio: Studio
    machine: Machine
    looking: asyncio.Lock = field(default_factory=asyncio.Lock)
    beginning: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def machine_fragment(self, _: Request) -> Response:
        """The machine in a line, and what to do about it."""
        async with self.looking:
            found = await asyncio.to_thread(self.machine.remembered)
            if found is None:
                try:
                    found = await in_own_thread(self.machine.examine)
                except ImpastoError as error:
                    return self.studio.page("machine.html.j2", facts=[], advice=[str(error)])
        return self.studio.page("machine.html.j2", **_machine_view(found))

    async def demo(self, _: Request) -> Response:
        """Train the demo in a folder of its own among the runs, unless that is under way."""
        async with self.beginning:
            name = await asyncio.to_thread(self._demo_task)
        return RedirectResponse(f"/tasks/{name}", 303)

    def _demo_task(self) -> str:
        """The name of the task that trains the demo."""
        tasks = self.studio.tasks
        for task in tasks.newest("demo"):
            if tasks.state_of(task).is_alive:
                return task.path.name
        folder = self.studio.folders.runs[0]
        run = free_path(folder / "impasto-demo")
        made = Made(
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
