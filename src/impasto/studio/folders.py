"""Which folders the studio shows, and how what is in them is named in addresses."""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from impasto import files
from impasto.errors import RunError
from impasto.runs import RunDirectory
from impasto.runs.listing import RunSummary, find_runs, newest_first

HOME = Path(".impasto") / "studio"
"""Where the studio keeps what belongs to no run, below the first folder of runs."""

_SHOWN = (
    "config.toml", "status.json", "events.jsonl", "metrics.jsonl", "dataset.json",
    "environment.json", "samples", "states", "export", "commands", "report.html", "terminal.log",
)  # fmt: skip
"""What the studio reads and writes in a run directory."""


@dataclass(frozen=True)
class Folders:
    """The folders that the studio was given; nothing outside of them is shown.

    Attributes:
        runs: Folders with run directories in them.
        data: Folders of images, or with such folders in them.
        models: Folders with models in them.
    """

    runs: Sequence[Path]
    data: Sequence[Path] = ()
    models: Sequence[Path] = ()

    def all_runs(self) -> list[RunSummary]:
        """How the runs of all folders stand; those that are worked on first, then the newest."""
        return newest_first(find_runs(self.runs))

    def run_of(self, name: str) -> RunDirectory | None:
        """The run that an address names; None where there is none, or not in these folders."""
        path = path_of(self.runs, name)
        if path is None:
            return None
        run = RunDirectory(path)
        try:
            is_ours = run.is_there() and not any(leads_out(path / name, path) for name in _SHOWN)
        except (ValueError, OSError):
            return None
        return run if is_ours else None

    def name_of(self, run: RunDirectory) -> str:
        """How addresses name a run."""
        return address_of(self.runs, run.path)


def path_of(folders: Sequence[Path], name: str) -> Path | None:
    """The path that an address names; None where it is in none of some folders, links followed.

    Whether anything is there is not looked at.
    """
    number, _, text = name.partition(".")
    if number not in map(str, range(len(folders))):
        return None
    try:
        inside = os.fsdecode(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        path = folders[int(number)] / inside
        return path if files.is_inside(path, folders[int(number)]) else None
    except (binascii.Error, ValueError, OSError):
        return None


def address_of(folders: Sequence[Path], path: Path) -> str:
    """How addresses name a path: its folder's number and its path there, in letters and digits.

    Paths may hold anything: slashes, quotes, bytes that are no text.

    Raises:
        ValueError: It is in none of the folders.
    """
    for number, folder in enumerate(folders):
        if path.is_relative_to(folder):
            inside = os.fsencode(path.relative_to(folder))
            text = base64.urlsafe_b64encode(inside).decode("ascii").rstrip("=")
            return f"{number}.{text}"
    raise ValueError(f"{path} is in none of the folders")


def require_own(home: Path, folder: Path) -> None:
    """Make sure that the studio's own folder is nowhere but in the folder of runs.

    A stranger may have packed that: a link in its place would have files elsewhere replaced, and
    removed when it is tidied.

    Args:
        home: The studio's own folder.
        folder: The folder of runs that it is in.

    Raises:
        RunError: It, or what is in it, is a link that leads out.
    """
    entries = [*home.iterdir()] if home.is_dir() else []
    for path in (*reversed(home.relative_to(folder).parents), home, *entries):
        target = path if path.is_absolute() else folder / path
        if leads_out(target, folder):
            raise RunError(
                f"{target} is a link that leads out of {folder}, where the studio keeps files of "
                f"its own. Remove the link, or give another folder of runs first."
            )


def file_of(run: RunDirectory, folder: Path, name: str) -> Path | None:
    """A regular file of a folder of a run, by a name from an address; None where there is none.

    Links that lead out of the run are not followed, be they the file or a folder above it.
    """
    path = folder / name
    try:
        is_ours = path.parent == folder and not leads_out(path, run.path) and path.is_file()
    except (OSError, ValueError):
        return None
    return path if is_ours else None


def leads_out(path: Path, folder: Path) -> bool:
    """Whether a path is a link, or below one, that leads out of a folder.

    A stranger may have made the folder; what such a link leads to is no business of a browser.
    """
    return not files.is_inside(path, folder)
