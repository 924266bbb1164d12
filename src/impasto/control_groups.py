"""Finds the Linux control groups (cgroups) of this process, and reads the files in them.

Docker, Kubernetes and Slurm use them to limit RAM (`ram.py`) and CPU time (`cpus.py`); other
systems have none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path("/")


@dataclass(frozen=True)
class ControlGroup:
    """A control group, by the folder of its files.

    Attributes:
        folder: The folder, which may not exist.
        is_v1: Whether the group is of cgroups version 1, in which each controller has separate
            groups.
    """

    folder: Path
    is_v1: bool

    def text(self, name: str) -> str:
        """Return the text of a file of the group, or an empty string if it cannot be read."""
        return _text(self.folder / name)

    def number(self, name: str) -> int | None:
        """Return the number in a file of the group; None if the file is missing or has "max"."""
        text = self.text(name).strip()
        return int(text) if text.isdigit() else None


def control_groups(controller: str, root: Path = ROOT) -> Iterator[ControlGroup]:
    """Yield the groups that this process is in, each before its parents.

    A container may see its own group as the root, while /proc names it by its path outside of the
    container; then the folders of that path do not exist, and the root has the group's files.

    Args:
        controller: The resource that the groups limit: `memory` or `cpu`.
        root: The root of the file system, with `proc` and `sys`; tests pass another.
    """
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, named = line.partition(":")
        controllers, _, path = named.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
        folder = root.joinpath("sys/fs/cgroup", controller if controllers else "")
        for depth in range(len(parts), -1, -1):
            yield ControlGroup(folder.joinpath(*parts[:depth]), is_v1=bool(controllers))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
