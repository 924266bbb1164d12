"""State and helpers that all pages share: shown folders, processes, templates, responses."""

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
"""Addresses and titles of the pages in the navigation bar."""


@cache
def _templates() -> Environment:
    """Return the template environment of all pages; a process compiles each template once."""
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
    """The state that the routes share.

    Attributes:
        folders: The folders that are shown.
        home: The folder for files that belong to no run: tasks, thumbnails, uploads.
        queue: The folder of the queue, which need not exist.
        run_processes: Starts processes that work on runs.
        tasks: Starts other processes.
        plans: Makes plans of new runs.
        machine: Finds the GPUs, memory and disk space of this machine.
        templates: Renders pages, with all values escaped.
        look_every_s: Seconds between two reads of a run that is being watched.
        listens: Names and values of the options that set the listening address and port.
        plans_ahead: Whether a process is kept ready for the next plan.
        closing: Set when the server stops, so that streams end too.
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
        """Render a template as a page or a part of one, with caching turned off."""
        text = self.templates.get_template(template).render(content)
        return HTMLResponse(
            text.encode("utf-8", errors="replace"), status, {"cache-control": "no-store"}
        )

    def refusal(self, request: Request, status: int, message: str) -> Response:
        """Return an error page with a message; for a request by htmx, only a part of a page."""
        if "hx-request" in request.headers:
            return self.page("refusal.html.j2", status, message=message)
        before = urlsplit(request.headers.get("referer", ""))
        back = f"{before.path}?{before.query}" if before.query else before.path
        is_here = before.netloc == request.headers.get("host") and not back.startswith("//")
        is_other = before.path != request.url.path or request.method == "POST"
        return self.page(
            "error.html.j2", status, message=message, back=back if is_here and is_other else ""
        )
