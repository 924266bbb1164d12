"""The CPU count is what the machine, a container or a batch job lets a process use."""

import os

import pytest

from impasto.cpus import usable_cpus
from impasto.data.engines import stages

HERE = 6


@pytest.fixture
def system(tmp_path, monkeypatch):
    """The root folder of a machine that lets this process run on six CPUs."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(HERE)), raising=False)
    (tmp_path / "proc/self").mkdir(parents=True)
    return tmp_path


def group(system, line, limits):
    """Put this process into a control group, and write the group's files."""
    (system / "proc/self/cgroup").write_text(f"{line}\n", encoding="utf-8")
    for name, text in limits.items():
        file = system / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("limits", "usable"),
    [
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "150000 100000"}, 2),  # half a CPU counts as one worker
        ({"cpu.max": "10000 100000"}, 1),
        ({"cpu.max": "9900000 100000"}, HERE),
        ({"cpu.max": "max 100000"}, HERE),
        ({"cpu.max": "?"}, HERE),
        ({"cpu.max": "1 0"}, HERE),
        ({}, HERE),
    ],
)
def test_a_container_has_its_share_of_the_cpus(limits, usable, system):
    group(system, "0::/", limits)
    assert usable_cpus(system) == usable


def test_the_least_of_all_groups_around_a_process_counts(system):
    """A batch job limits the job, its step, or both."""
    limits = {
        "slurm/job_1/step_0/cpu.max": "max 100000",
        "slurm/job_1/cpu.max": "300000 100000",
        "slurm/cpu.max": "500000 100000",
    }
    group(system, "0::/slurm/job_1/step_0", limits)
    assert usable_cpus(system) == 3


@pytest.mark.parametrize("seen_as", ["docker/abc/", ""])
@pytest.mark.parametrize(("quota", "usable"), [("200000", 2), ("-1", HERE)])
def test_groups_of_version_1_limit_as_well(quota, usable, seen_as, system):
    folder = f"cpu/{seen_as}cpu.cfs_"
    limits = {f"{folder}quota_us": quota, f"{folder}period_us": "100000"}
    group(system, "9:memory:/docker/abc\n5:cpu,cpuacct:/docker/abc", limits)
    assert usable_cpus(system) == usable


def test_a_system_without_control_groups_is_asked_alone(system, monkeypatch):
    assert usable_cpus(system) == HERE
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cpus(system) == 1


@pytest.mark.parametrize(("sharing", "workers"), [(1, 3), (2, 1), (4, 1)])
def test_there_are_as_many_workers_as_cpus_may_be_used(sharing, workers, monkeypatch):
    monkeypatch.setattr(stages, "usable_cpus", lambda: 3)
    assert stages.default_workers(sharing) == workers
