"""Finds run directories below folders, and says of each how it stands."""

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

_LATEST = 2**33  # later moments are none that every system's clock can show

DEPTH = 3
"""Levels of folders below a given one that runs are looked for in."""


@dataclass(frozen=True)
class RunSummary:
    """How a run stands.

    Attributes:
        run: The directory.
        state: Its true state.
        updated_at: When it last said something, in seconds since 1970; 0 if it never did.
    """

    run: RunDirectory
    state: RunState
    updated_at: float

    @property
    def when(self) -> str:
        """When the run last changed, by the clock of this machine; empty if it is not known."""
        if not 0 < self.updated_at < _LATEST:
            return ""
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(self.updated_at))

    def as_json(self) -> dict[str, Any]:
        """The run as plain values, for JSON; None for what is not known."""
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
    """The run directories among some folders and below them, each once, by path.

    What cannot be looked into is skipped, and so are links: runs are found where they are.
    """
    found = {path for folder in folders for path, is_run in walk_runs(folder, depth) if is_run}
    return [RunDirectory(path) for path in sorted(found)]


def summary_of(run: RunDirectory) -> RunSummary:
    """How a run stands now."""
    state = run.state()
    return RunSummary(run, state, float(state.status.get("updated_at", 0)))


def newest_first(runs: Iterable[RunDirectory]) -> list[RunSummary]:
    """How runs stand: those that are worked on first, then by when they last said something."""
    summaries = map(summary_of, runs)
    return sorted(summaries, key=lambda s: (not s.state.is_alive, -s.updated_at, s.run.path))


def walk_runs(folder: Path, depth: int = DEPTH) -> Iterator[tuple[Path, bool]]:
    """A folder and those below it, as far as runs are looked for: path, and whether it is a run.

    Hidden folders, what is in runs, what cannot be looked into, and links are left out.
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
