"""RAM is what the machine has, or what a container or batch job may use of it."""

import psutil
import pytest

from impasto import ram

MIB = 1 << 20


def group(folder, *, v1=False, limit, used, cache=0):
    """Write the files of a control group."""
    folder.mkdir(parents=True, exist_ok=True)
    most, now = ("limit_in_bytes", "usage_in_bytes") if v1 else ("max", "current")
    (folder / f"memory.{most}").write_text(f"{limit}\n", encoding="utf-8")
    (folder / f"memory.{now}").write_text(f"{used}\n", encoding="utf-8")
    total, old = "total_" if v1 else "", cache // 3
    text = f"anon 1\n{total}inactive_file {old}\n{total}active_file {cache - old}\nslab\n"
    (folder / "memory.stat").write_text(text, encoding="utf-8")


@pytest.fixture
def system(tmp_path):
    """The root folder of a machine with version 2 control groups, as seen in a container."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n", encoding="utf-8")
    return tmp_path


def test_a_container_may_take_what_is_left_under_its_limit(system):
    """A group's usage includes the page cache, which is freed when RAM is needed."""
    group(system / "sys/fs/cgroup", limit=100 * MIB, used=90 * MIB, cache=30 * MIB)
    assert ram.free_bytes(system) == 40 * MIB
    assert ram.total_bytes(system) == 100 * MIB


def test_the_least_of_all_groups_around_a_process_is_left(system):
    """A batch job limits the job, its step, or both."""
    (system / "proc/self/cgroup").write_text("0::/slurm/job_1/step_0\n", encoding="utf-8")
    groups = system / "sys/fs/cgroup"
    group(groups / "slurm/job_1/step_0", limit="max", used=10 * MIB)
    group(groups / "slurm/job_1", limit=64 * MIB, used=40 * MIB)
    group(groups / "slurm", limit=80 * MIB, used=79 * MIB)
    assert ram.free_bytes(system) == 1 * MIB
    assert ram.total_bytes(system) == 64 * MIB


@pytest.mark.parametrize("seen_as", ["docker/abc", "."])
def test_groups_of_version_1_limit_as_well(seen_as, system):
    """Version 1 limits apply even if the container sees as root what /proc names from outside."""
    lines = "12:cpu,cpuacct:/docker/abc\n9:memory:/docker/abc\n0::/docker/abc\n"
    (system / "proc/self/cgroup").write_text(lines, encoding="utf-8")
    folder = system / "sys/fs/cgroup/memory" / seen_as
    group(folder, v1=True, limit=100 * MIB, used=90 * MIB, cache=5 * MIB)
    assert ram.free_bytes(system) == 15 * MIB


def test_a_group_that_takes_more_than_its_limit_leaves_nothing(system):
    group(system / "sys/fs/cgroup", limit=100 * MIB, used=101 * MIB)
    assert ram.free_bytes(system) == 0


@pytest.mark.parametrize("limit", ["max", 1 << 62, "?"])
def test_without_a_limit_the_machine_has_it_all(limit, system):
    group(system / "sys/fs/cgroup", limit=limit, used=MIB)
    assert ram.total_bytes(system) == psutil.virtual_memory().total
    assert ram.free_bytes(system) > 0


def test_a_system_without_control_groups_is_asked_alone(tmp_path):
    assert ram.total_bytes(tmp_path) == psutil.virtual_memory().total
