"""The number of CPUs that this process may use: all, or fewer in a container or batch job.

Slurm and `taskset` restrict a process to some CPUs; Docker and Kubernetes let it run on all of
them, and limit its CPU time by control groups.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from impasto.control_groups import ROOT, ControlGroup, control_groups


def usable_cpus(root: Path = ROOT) -> int:
    """Return the number of CPUs that this process may use, at least 1; fractions are rounded up.

    Args:
        root: The root of the file system, with `proc` and `sys`; tests pass another.
    """
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min([there or 1, *(math.ceil(share) for share in _shares(root))]))


def _shares(root: Path) -> Iterator[float]:
    """Yield the CPU time, in whole CPUs, of each control group that has a limit."""
    for group in control_groups("cpu", root):
        quota, period = _quota_and_period(group)
        if quota.isdigit() and period.isdigit() and int(period):
            yield int(quota) / int(period)


def _quota_and_period(group: ControlGroup) -> tuple[str, str]:
    """Return a group's CPU time and its period in microseconds; "max" or -1 means no limit."""
    if group.is_v1:
        return group.text("cpu.cfs_quota_us").strip(), group.text("cpu.cfs_period_us").strip()
    quota, _, period = group.text("cpu.max").strip().partition(" ")
    return quota, period
