"""The folders that the studio shows, and the names in addresses of paths inside them."""

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
"""Folder of the studio for files that belong to no run, below the first folder of runs."""

_SHOWN = (
    "config.toml", "status.json", "events.jsonl", "metrics.jsonl", "dataset.json",
    "environment.json", "samples", "states", "export", "commands", "report.html", "terminal.log",
)  # fmt: skip
"""Names of the files and folders that the studio reads and writes in a run directory."""


@dataclass(frozen=True)
class Folders:
    """The folders that the studio was started with; nothing outside them is shown.

    Attributes:
        runs: Folders that contain run directories.
        data: Folders of images, or folders that contain such folders.
        models: Folders that contain models.
    """

    runs: Sequence[Path]
    data: Sequence[Path] = ()
    models: Sequence[Path] = ()

    def all_runs(self) -> list[RunSummary]:
        """Return summaries of the runs of all folders: active ones first, then the newest."""
        return newest_first(find_runs(self.runs))

    def run_of(self, name: str) -> RunDirectory | None:
        """Return the run that an address names, or None if there is none in these folders."""
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
        """Return the name of a run in addresses."""
        return address_of(self.runs, run.path)


def path_of(folders: Sequence[Path], name: str) -> Path | None:
    """Return the path that an address names; None if it is outside the folders, links followed.

    The path need not exist.
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
    """Return the name of a path in addresses: its folder's number and its relative path in base64.

    The encoding is needed since a path may contain slashes, quotes, and bytes that are not UTF-8.

    Raises:
        ValueError: The path is in none of the folders.
    """
    for number, folder in enumerate(folders):
        if path.is_relative_to(folder):
            inside = os.fsencode(path.relative_to(folder))
            text = base64.urlsafe_b64encode(inside).decode("ascii").rstrip("=")
            return f"{number}.{text}"
    raise ValueError(f"{path} is in none of the folders")


def require_own(home: Path, folder: Path) -> None:
    """Check that the studio's own folder, links followed, is inside the folder of runs.

    The folder of runs may come from an untrusted source: if the studio's folder were a link, files
    elsewhere would be replaced, and removed by its cleanup.

    Args:
        home: The studio's own folder.
        folder: The folder of runs that contains it.

    Raises:
        RunError: The folder, or an entry in it, is a link that leads out of the folder of runs.
    """
    entries = [*home.iterdir()] if home.is_dir() else []
    for path in (*reversed(home.relative_to(folder).parents), home, *entries):
        target = path if path.is_absolute() else folder / path
        if leads_out(target, folder):
            raise RunError(
                f"{target} is a link that leads out of {folder}, where the studio stores its "
                f"own files. Remove the link, or name another folder of runs first."
            )


def file_of(run: RunDirectory, folder: Path, name: str) -> Path | None:
    """Return the regular file in a folder of a run that an address names, or None if there is none.

    Links that lead out of the run are not followed, whether the file or a folder above it is one.
    """
    path = folder / name
    try:
        is_ours = path.parent == folder and not leads_out(path, run.path) and path.is_file()
    except (OSError, ValueError):
        return None
    return path if is_ours else None


def leads_out(path: Path, folder: Path) -> bool:
    """Return whether a path is a link out of a folder, or below one.

    The folder may come from an untrusted source, and the browser must not see what such a link
    leads to.
    """
    return not files.is_inside(path, folder)
