"""The control groups of Linux that this process is in: where their numbers are.

Docker, Kubernetes and Slurm limit RAM (`ram.py`) and CPU time (`cpus.py`) by them; on other
systems there are none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path("/")


@dataclass(frozen=True)
class ControlGroup:
    """The folder of a group.

    Attributes:
        folder: The folder of its files; it may not exist.
        is_v1: Whether it is of version 1, where each controller has separate groups.
    """

    folder: Path
    is_v1: bool

    def text(self, name: str) -> str:
        """Return the content of one of its files, or an empty string if it cannot be read."""
        return _text(self.folder / name)

    def number(self, name: str) -> int | None:
        """Return the number in one of its files; None if it contains "max" or is missing."""
        text = self.text(name).strip()
        return int(text) if text.isdigit() else None


def control_groups(controller: str, root: Path = ROOT) -> Iterator[ControlGroup]:
    """Yield the groups that this process is in, each before its parents.

    A container may see its own group as the root of all, while /proc names it from outside; then
    the folders of that name are not there, and the root has its numbers.

    Args:
        controller: What the groups limit: `memory` or `cpu`.
        root: The folder with `proc` and `sys`.
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
