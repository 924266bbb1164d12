"""Finds the runs and jobs that name a model in their settings, and so would be lost with it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from impasto import files
from impasto.errors import ConfigError
from impasto.parsing import parse_toml, printable, read_text
from impasto.runs import RunDirectory
from impasto.runs.preparing import runs_prepared
from impasto.runs.queue_jobs import Job
from impasto.strengths import path_and_strength
from impasto.studio.folders import Folders
from impasto.studio.models import FoundModel


def users_of(model: FoundModel, runs: Iterable[RunDirectory]) -> list[tuple[RunDirectory, str]]:
    """Return the runs that name a model, with the setting; they need the model for a resume."""
    found = []
    for run in runs:
        key = _named_as(model, _settings(run.config_file), str(run.status().get("folder", "")))
        if key and run.path != (model.run and model.run.path):
            found.append((run, key))
    return found


def working_with(
    model: FoundModel, folders: Sequence[Path], runs: Iterable[RunDirectory], jobs: Iterable[Job]
) -> list[str]:
    """Return the names of runs and jobs that use a model now, or are about to write it.

    Args:
        model: The model.
        folders: The folders searched for runs that are just starting and have no run directory yet.
        runs: The runs that may need it.
        jobs: The jobs of the queue.
    """
    busy = [run for run, _ in users_of(model, runs)]
    busy += [model.run] if model.run is not None else []
    found = [printable(run.path.name) for run in busy if run.state().is_alive]
    found += [
        printable(run.path.name)
        for run in runs_prepared(folders)
        if _named_as(model, run.settings, run.folder)
    ]
    at_work = [job for job, _ in jobs_with(model, jobs) if job.state == "working"]
    return [*dict.fromkeys(found), *(f"job {job.number} of the queue" for job in at_work)]


def jobs_with(model: FoundModel, jobs: Iterable[Job]) -> list[tuple[Job, str]]:
    """Return the unfinished jobs of the queue that name a model, with the setting."""
    coming = (job for job in jobs if job.state in ("waiting", "paused", "working"))
    found = ((job, _named_as(model, _settings(job.settings_file), job.folder)) for job in coming)
    return [(job, key) for job, key in found if key]


def losers_of(
    model: FoundModel, runs: Sequence[RunDirectory], jobs: Iterable[Job], folders: Folders
) -> dict[str, Any]:
    """Return the runs and jobs that need a model, as plain values for `model_losers.html.j2`."""
    return {
        "users": [user_view(run, key, folders) for run, key in users_of(model, runs)],
        "jobs": [f"job {job.number}, {job.name} ({key})" for job, key in jobs_with(model, jobs)],
        "run": None if model.run is None else printable(model.run.path.name),
    }


def user_view(run: RunDirectory, key: str, folders: Folders) -> dict[str, str]:
    """Return a run that names a model as plain values for templates."""
    return {"name": folders.name_of(run), "title": printable(run.path.name), "key": key}


def _named_as(model: FoundModel, settings: Mapping[str, Any], folder: str | Path) -> str:
    """Return the setting that names a model, or an empty text if none does."""
    wanted = {files.real_path(model.path)}
    wanted |= {files.real_path(model.run.path)} if model.run is not None else set()
    for key, value in _paths_in(settings):
        with contextlib.suppress(OSError, ValueError):
            if files.real_path(Path(folder or ".") / Path(value).expanduser()) in wanted:
                return key
    return ""


def _settings(file: Path) -> Mapping[str, Any]:
    try:
        return parse_toml(read_text(file, "replace"))
    except (OSError, ValueError):
        return {}


def _paths_in(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield keys and values of settings that may name a model: base, VAE, start, hypernetworks."""
    for section, key in (("model", "path"), ("model", "vae"), ("method", "start_from")):
        values = settings.get(section)
        value = values.get(key) if isinstance(values, dict) else None
        if isinstance(value, str):
            yield f"{section}.{key}", value
    previews = settings.get("previews")
    drawn_with = previews.get("hypernetworks") if isinstance(previews, dict) else None
    for value in drawn_with if isinstance(drawn_with, list) else ():
        if isinstance(value, str):
            with contextlib.suppress(
                ConfigError
            ):  # the strength is invalid, and no run starts with these settings
                yield "previews.hypernetworks", str(path_and_strength(value)[0])
