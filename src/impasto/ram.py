"""How much RAM this process may take: what the machine has, or less in a container or batch job.

Docker, Kubernetes and Slurm limit RAM by control groups of Linux, and the kernel kills who takes
more. psutil asks the whole machine, so the groups are asked besides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil

ROOT = Path("/")


@dataclass(frozen=True)
class _Layout:
    """Where a version of control groups has its numbers, in bytes.

    Attributes:
        folder: Of all groups, under /sys/fs/cgroup.
        limit: The file of the most that a group may take.
        used: The file of what it takes, page cache included.
        cache: The lines of memory.stat with the page cache, which goes as soon as RAM is needed.
    """

    folder: str
    limit: str
    used: str
    cache: tuple[str, str]


_V1 = _Layout(
    "memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
    ("total_inactive_file", "total_active_file"),
)  # fmt: skip
_V2 = _Layout("", "memory.max", "memory.current", ("inactive_file", "active_file"))


def free_bytes(root: Path = ROOT) -> int:
    """RAM that this process could take besides what it has, as far as its control groups let it.

    Args:
        root: The folder with `proc` and `sys`.
    """
    left = (max(0, limit - used) for limit, used in _limits(root))
    return min([int(psutil.virtual_memory().available), *left])


def total_bytes(root: Path = ROOT) -> int:
    """RAM of the machine, or what its control groups let this process have of it.

    Args:
        root: The folder with `proc` and `sys`.
    """
    limits = (limit for limit, _ in _limits(root))
    return min([int(psutil.virtual_memory().total), *limits])


def _limits(root: Path) -> Iterator[tuple[int, int]]:
    """The limit of each group with one that this process is in, and what the group takes of it."""
    for layout, group in _groups(root):
        if (limit := _number(group / layout.limit)) is None:
            continue
        used = _number(group / layout.used) or 0
        yield limit, used - _of_stat(group / "memory.stat", layout.cache)


def _groups(root: Path) -> Iterator[tuple[_Layout, Path]]:
    """The folders of the groups that this process is in, each before those that it lies in.

    A container may see its own group as the root of all, while /proc names it from outside; then
    the folders of that name are not there, and the root has its numbers.
    """
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, named = line.partition(":")
        controllers, _, path = named.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        layout = _V1 if controllers else _V2
        parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
        for depth in range(len(parts), -1, -1):
            yield layout, root.joinpath("sys/fs/cgroup", layout.folder, *parts[:depth])


def _of_stat(file: Path, keys: tuple[str, ...]) -> int:
    """The sum of some lines' numbers in memory.stat; 0 without them."""
    words = (line.split() for line in _text(file).splitlines())
    return sum(int(n) for key, n, *_ in filter(_is_pair, words) if key in keys)


def _is_pair(words: list[str]) -> bool:
    return len(words) == 2 and words[1].isdigit()


def _number(file: Path) -> int | None:
    """The number in a file; None where it says "max", or is not there."""
    text = _text(file).strip()
    return int(text) if text.isdigit() else None


def _text(file: Path) -> str:
    """What is in a file; nothing where it cannot be read, as on other systems than Linux."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
