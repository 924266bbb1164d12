"""The RAM that this process may use: all of the machine, or less in a container or batch job.

Docker, Kubernetes and Slurm limit RAM by Linux control groups, and the kernel kills a process that
exceeds the limit. psutil reports the whole machine, so the control groups are read too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from impasto.control_groups import ROOT, ControlGroup, control_groups


@dataclass(frozen=True)
class _Names:
    """Names of the files of a control group, whose values are in bytes.

    Attributes:
        limit: The file with the limit of the group.
        used: The file with the memory in use, page cache included.
        cache: The lines of memory.stat with the page cache, which is freed as soon as RAM is
            needed.
    """

    limit: str
    used: str
    cache: tuple[str, str]


_V1 = _Names(
    "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")
)
_V2 = _Names("memory.max", "memory.current", ("inactive_file", "active_file"))


def free_bytes(root: Path = ROOT) -> int:
    """Return the bytes of RAM that this process can still allocate, within its control groups.

    Args:
        root: The root of the file system, with `proc` and `sys`; tests pass another.
    """
    left = (max(0, limit - used) for limit, used in _limits(root))
    return min([int(psutil.virtual_memory().available), *left])


def total_bytes(root: Path = ROOT) -> int:
    """Return the bytes of RAM of the machine, or the limit of this process's control groups.

    Args:
        root: The root of the file system, with `proc` and `sys`; tests pass another.
    """
    limits = (limit for limit, _ in _limits(root))
    return min([int(psutil.virtual_memory().total), *limits])


def _limits(root: Path) -> Iterator[tuple[int, int]]:
    """Yield the limit and the used bytes, without page cache, of each group that has a limit."""
    for group in control_groups("memory", root):
        names = _V1 if group.is_v1 else _V2
        if (limit := group.number(names.limit)) is None:
            continue
        yield limit, (group.number(names.used) or 0) - _of_stat(group, names.cache)


def _of_stat(group: ControlGroup, keys: tuple[str, ...]) -> int:
    """Return the sum of the given lines of memory.stat; 0 if there are none."""
    words = (line.split() for line in group.text("memory.stat").splitlines())
    return sum(int(n) for key, n, *_ in filter(_is_pair, words) if key in keys)


def _is_pair(words: list[str]) -> bool:
    return len(words) == 2 and words[1].isdigit()
