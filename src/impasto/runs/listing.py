"""Finds run directories below folders, and summarizes the state of each."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impasto import presence
from impasto.runs.directory import RunDirectory
from impasto.runs.status import RunState

_LATEST = 2**33  # later times cannot be shown by every system's clock

DEPTH = 3
"""Levels of folders below a given one that are searched for runs."""


@dataclass(frozen=True)
class RunSummary:
    """The state of a run.

    Attributes:
        run: The directory.
        state: Its true state.
        updated_at: When it last updated its status, in seconds since 1970; 0 if never.
    """

    run: RunDirectory
    state: RunState
    updated_at: float

    @property
    def when(self) -> str:
        """When the run last changed, by the clock of this machine; empty if unknown."""
        if not 0 < self.updated_at < _LATEST:
            return ""
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(self.updated_at))

    def as_json(self) -> dict[str, Any]:
        """Return the summary as plain values, for JSON; None for unknown ones."""
        status = self.state.status
        holder = self.state.holder
        return {
            "path": str(self.run.path),
            "state": self.state.state,
            "step": self.state.step,
            "total_steps": self.state.total_steps,
            "saved_step": self.state.saved_step,
            "finished_step": self.state.finished_step,
            "resumption": self.state.resumption,
            "updated_at": self.updated_at,
            "seconds_left": status.get("seconds_left") if self.state.is_alive else None,
            "images_per_s": status.get("images_per_s"),
            "loss": status.get("loss"),
            "stage": status.get("stage"),
            "process": None if holder is None or holder.owner is None else holder.owner.pid,
            "message": status.get("message", ""),
        }


def find_runs(folders: Iterable[Path], depth: int = DEPTH) -> list[RunDirectory]:
    """Return the run directories within some folders, each once, by path.

    Folders that cannot be read are skipped, and so are links: runs are found at their real paths.
    """
    found = {path for folder in folders for path, is_run in walk_runs(folder, depth) if is_run}
    return [RunDirectory(path) for path in sorted(found)]


def summary_of(run: RunDirectory) -> RunSummary:
    """Return the present state of a run."""
    state = run.state()
    return RunSummary(run, state, float(state.status.get("updated_at", 0)))


def newest_first(runs: Iterable[RunDirectory]) -> list[RunSummary]:
    """Return summaries of runs: active ones first, then by when they last updated their status."""
    summaries = map(summary_of, runs)
    return sorted(summaries, key=lambda s: (not s.state.is_alive, -s.updated_at, s.run.path))


def walk_runs(folder: Path, depth: int = DEPTH) -> Iterator[tuple[Path, bool]]:
    """Yield a folder and those below it that are searched for runs: path, and whether it is a run.

    Hidden folders, the content of runs, unreadable folders, and links are left out.
    """
    is_run = RunDirectory(folder).is_there()
    yield folder, is_run
    if is_run or depth == 0:
        return
    try:
        with os.scandir(folder) as entries:
            inside = sorted(
                entry.name
                for entry in entries
                if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)
            )
    except OSError:
        return
    for path in (folder / name for name in inside):
        if not presence.is_link(path):  # a junction of Windows is a folder for `scandir`
            yield from walk_runs(path, depth - 1)
