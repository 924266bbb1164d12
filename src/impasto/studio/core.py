"""What the pages of the studio share: the folders shown, processes, templates, answers."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jinja2 import (
    ChoiceLoader,
    Environment,
    PackageLoader,
    PrefixLoader,
    StrictUndefined,
)
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from impasto.runs.events import stage_text
from impasto.studio.folders import Folders
from impasto.studio.machine import Machine
from impasto.studio.plans import Plans
from impasto.studio.run_processes import RunProcesses
from impasto.studio.static_files import static_address
from impasto.studio.tasks import TASKS, Tasks

LOOK_EVERY_S = 1.0
NAVIGATION = (
    ("/", "Runs"),
    ("/new", "New run"),
    ("/data", "Data"),
    ("/queue", "Queue"),
    ("/compare", "Compare"),
    ("/draw", "Draw"),
    ("/models", "Models"),
    ("/tasks", "Tasks"),
)
"""The pages that every page leads to: their addresses and titles."""


@cache
def _templates() -> Environment:
    """The templates of all pages, each of which a process compiles once."""
    found = Environment(
        loader=ChoiceLoader(
            [
                PackageLoader("impasto.studio"),
                PrefixLoader({"shared": PackageLoader("impasto.report", "templates/shared")}),
            ]
        ),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.globals["navigation"] = NAVIGATION
    found.globals["static"] = static_address
    found.globals["stage_text"] = stage_text
    return found


@dataclass(frozen=True)
class Studio:
    """What the routes work with.

    Attributes:
        folders: What is shown.
        home: Where the studio keeps what belongs to no run: tasks, thumbnails, uploads.
        queue: The folder of the queue, which need not be there.
        run_processes: Starts processes that work on runs.
        tasks: Starts other processes.
        plans: Makes plans of new runs.
        machine: Knows what this machine has.
        templates: Makes pages; whatever is put into one is escaped.
        look_every_s: Seconds between two looks at a run that is being watched.
        listens: The options that it was started with for where it listens: name and value.
        plans_ahead: Whether a process is kept ready for the next plan.
        closing: Set when the server ends, so that streams end too.
    """

    folders: Folders
    home: Path
    queue: Path
    run_processes: RunProcesses = field(default_factory=RunProcesses)
    tasks: Tasks = field(init=False)
    plans: Plans = field(init=False)
    machine: Machine = field(init=False)
    templates: Environment = field(default_factory=_templates)
    look_every_s: float = LOOK_EVERY_S
    listens: Sequence[tuple[str, object]] = ()
    plans_ahead: bool = True
    closing: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", Tasks(self.home / TASKS))
        object.__setattr__(self, "plans", Plans(self.home, keeps_ready=self.plans_ahead))
        machine = Machine(self.home / "machine.json", self.folders.runs[0])
        object.__setattr__(self, "machine", machine)

    def page(self, template: str, status: int = 200, **content: Any) -> Response:
        """A page or a part of one, which no cache keeps."""
        text = self.templates.get_template(template).render(content)
        return HTMLResponse(
            text.encode("utf-8", errors="replace"), status, {"cache-control": "no-store"}
        )

    def refusal(self, request: Request, status: int, message: str) -> Response:
        """Why something is not possible: a page, or a part of one where htmx asks for a part."""
        if "hx-request" in request.headers:
            return self.page("refusal.html.j2", status, message=message)
        before = urlsplit(request.headers.get("referer", ""))
        back = f"{before.path}?{before.query}" if before.query else before.path
        is_here = before.netloc == request.headers.get("host") and not back.startswith("//")
        is_other = before.path != request.url.path or request.method == "POST"
        return self.page(
            "error.html.j2", status, message=message, back=back if is_here and is_other else ""
        )
