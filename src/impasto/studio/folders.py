"""Which folders the studio shows, and how their runs are named in addresses."""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from impasto import files
from impasto.runs import RunDirectory
from impasto.runs.listing import RunSummary, find_runs, newest_first


@dataclass(frozen=True)
class Folders:
    """The folders that the studio was given; nothing outside of them is shown.

    Attributes:
        runs: Folders with run directories in them.
    """

    runs: Sequence[Path]

    def all_runs(self) -> list[RunSummary]:
        """How the runs of all folders stand; those that are worked on first, then the newest."""
        return newest_first(find_runs(self.runs))

    def run_of(self, name: str) -> RunDirectory | None:
        """The run that an address names; None where there is none, or not in these folders."""
        number, _, text = name.partition(".")
        if not number.isdecimal() or int(number) >= len(self.runs):
            return None
        try:
            inside = os.fsdecode(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
            path = self.runs[int(number)] / inside
            run = RunDirectory(path)
            is_ours = files.is_inside(path, self.runs[int(number)]) and run.is_there()
        except (binascii.Error, ValueError, OSError):
            return None
        return run if is_ours else None

    def name_of(self, run: RunDirectory) -> str:
        """How addresses name a run: its folder's number and its path there, in letters and digits.

        Paths may hold anything: slashes, quotes, bytes that are no text.
        """
        for number, folder in enumerate(self.runs):
            if run.path.is_relative_to(folder):
                inside = os.fsencode(run.path.relative_to(folder))
                text = base64.urlsafe_b64encode(inside).decode("ascii").rstrip("=")
                return f"{number}.{text}"
        raise ValueError(f"{run.path} is in none of the folders")


def file_inside(folder: Path, name: str) -> Path | None:
    """A regular file of a folder, by a name from an address; None where there is none.

    Links that lead out of the folder are not followed.
    """
    path = folder / name
    try:
        is_ours = files.is_inside(path, folder) and path.is_file()
    except (OSError, ValueError):
        return None
    return path if is_ours else None
