"""The page "Compare": the curves, settings and samples of several runs, side by side."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from impasto.config.differences import differences, read_settings
from impasto.parsing import read_text
from impasto.report.compare_page import line_class, rows_by_name, value_text
from impasto.report.comparison import figures_of, nearest
from impasto.report.matching import matching_samples
from impasto.report.previews import preview_names
from impasto.runs import RunDirectory
from impasto.studio.core import Studio
from impasto.studio.pages.run_views import run_rows

MOST_RUNS = 24
"""Maximum number of runs; more curves cannot be distinguished by their colours and dashes."""

_SAMPLE_ROWS = 40
_SAMPLE_STEPS = 200


def routes(studio: Studio) -> list[BaseRoute]:
    """Return the routes of this page."""
    page = ComparePage(studio)
    return [Route("/compare", page.show), Route("/compare/numbers", page.numbers)]


@dataclass(frozen=True)
class ComparePage:
    """Answers requests for comparisons.

    Attributes:
        studio: The state of the studio.
    """

    studio: Studio

    async def show(self, request: Request) -> Response:
        """Show the runs that the address names side by side, and a form to choose others."""
        names = _names_in(request)

        def read() -> dict[str, Any]:
            runs, lost = self._runs(names)
            return {
                "choices": run_rows(self.studio.folders.all_runs(), self.studio.folders.name_of),
                "asked": "asked" in request.query_params,
                "chosen": [self.studio.folders.name_of(run) for run in runs],
                "lost": lost,
                **self._content(runs),
            }

        return self.studio.page("compare.html.j2", **await asyncio.to_thread(read))

    async def numbers(self, request: Request) -> Response:
        """Show the results of runs, as a separate part since long metrics are slow to read."""
        names = _names_in(request)

        def read() -> dict[str, Any]:
            runs, _ = self._runs(names)
            rows = rows_by_name([figures_of(run).rows() for run in runs])
            return {"runs": self._titles(runs), "rows": rows}

        return self.studio.page("compare_numbers.html.j2", **await asyncio.to_thread(read))

    def _runs(self, names: list[str]) -> tuple[list[RunDirectory], int]:
        """Return the runs with the given names, and the number of those that no longer exist."""
        found = [self.studio.folders.run_of(name) for name in names]
        runs = [run for run in found if run is not None]
        return runs, len(found) - len(runs)

    def _titles(self, runs: list[RunDirectory]) -> list[dict[str, str]]:
        return [
            {
                "name": self.studio.folders.name_of(run),
                "title": run.path.name or str(run.path),
                "line": line_class(number),
            }
            for number, run in enumerate(runs)
        ]

    def _content(self, runs: list[RunDirectory]) -> dict[str, Any]:
        titles = self._titles(runs)
        read = [read_settings(_config(run)) for run in runs]
        steps = [
            [step for step in run.sampled_steps()[-_SAMPLE_STEPS:] if preview_names(run, step)]
            for run in runs
        ]
        return {
            "runs": [
                {**title, "state": run.state().state}
                for title, run in zip(titles, runs, strict=True)
            ],
            "query": urlencode([("runs", title["name"]) for title in titles]),
            "settings": [
                {"name": d.path, "about": d.about, "cells": [value_text(v) for v in d.values]}
                for d in differences([settings for settings, _ in read])
            ],
            "faults": [
                (title["title"], fault)
                for title, (_, fault) in zip(titles, read, strict=True)
                if fault
            ],
            "steps": sorted({step for of in steps for step in of}),
            "samples": _samples(runs, titles, steps),
        }


def _names_in(request: Request) -> list[str]:
    """Return the names of runs in an address, each once.

    Raises:
        HTTPException: 400 if there are too many.
    """
    names = list(dict.fromkeys(request.query_params.getlist("runs")))
    if len(names) > MOST_RUNS:
        raise HTTPException(
            400, f"{len(names)} runs are too many to compare: choose {MOST_RUNS} at most."
        )
    return names


def _config(run: RunDirectory) -> str:
    try:
        return read_text(run.config_file, "replace")
    except OSError:
        return ""


def _samples(
    runs: list[RunDirectory], titles: list[dict[str, str]], steps: list[list[int]]
) -> list[dict[str, Any]]:
    """Return rows of prompts with a cell per run, which is None if the run has no such sample."""
    newest = max((of[-1] for of in steps if of), default=0)
    return [
        {
            "parameters": row.parameters,
            "cells": [
                {**title, "file": name, "steps": of, "step": nearest(of, newest), "differing": told}
                if name is not None and of
                else None
                for title, name, of, told in zip(
                    titles, row.files, steps, row.differing, strict=True
                )
            ],
        }
        for row in matching_samples(runs)[:_SAMPLE_ROWS]
    ]
