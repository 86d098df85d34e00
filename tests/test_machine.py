"""The cores and the memory of the job, by fake trees of /proc and /sys of every kind there is."""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping
from pathlib import Path

import pytest

from streamkm import machine
from streamkm.machine import (
    MemoryLimit,
    cgroup_cores,
    cgroup_memory,
    cores_by_quota,
    memory_limit,
    n_cores,
    processor_name,
)

GIB = 1 << 30
#: What version 1 says where there is no limit.
UNLIMITED = 0x7FFFFFFFFFFFF000
SHARED = "x, divided by 4 processes"

V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
)
HYBRID = V1 + "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"


def tree(root: Path, mounts: str, groups: str, files: Mapping[str, object]) -> Path:
    """A root with these mounts, this /proc/self/cgroup and these files below /sys/fs/cgroup."""
    contents = {f"sys/fs/cgroup/{name}": content for name, content in files.items()}
    contents |= {"proc/self/mountinfo": mounts, "proc/self/cgroup": groups}
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n")
    return root


def limits(root: Path) -> tuple[int | None, int | None]:
    """Cores and bytes of memory."""
    memory = cgroup_memory(root)
    return cgroup_cores(root), None if memory is None else memory.n_bytes


def test_version_2_names_the_file_that_limits(tmp_path):
    files = {"job/cpu.max": "150000 100000", "job/memory.max": 3 * GIB}
    root = tree(tmp_path, V2, "0::/job", files)
    assert cgroup_cores(root) == 2  # 1.5, rounded up
    assert cgroup_memory(root) == MemoryLimit(3 * GIB, "cgroup limit /sys/fs/cgroup/job/memory.max")


# Breaks when only the innermost group is asked: SLURM limits the job, not the step within it.
def test_a_group_above_limits_too(tmp_path):
    files = {
        "slurm/job/step/cpu.max": "max 100000",
        "slurm/job/step/memory.max": "max",
        "slurm/job/cpu.max": "400000 100000",
        "slurm/job/memory.max": 2 * GIB,
        "slurm/cpu.max": "800000 100000",
        "slurm/memory.max": 64 * GIB,
    }
    assert limits(tree(tmp_path, V2, "0::/slurm/job/step", files)) == (4, 2 * GIB)


# Processes above memory.high are slowed down until they stand still.
def test_a_high_mark_is_a_limit(tmp_path):
    files = {"job/memory.max": 4 * GIB, "job/memory.high": GIB}
    root = tree(tmp_path, V2, "0::/job", files)
    assert cgroup_memory(root) == MemoryLimit(GIB, "cgroup limit /sys/fs/cgroup/job/memory.high")


def test_version_1_has_a_hierarchy_for_each_controller(tmp_path):
    files = {
        "cpu,cpuacct/a/cpu.cfs_quota_us": 250000,
        "cpu,cpuacct/a/cpu.cfs_period_us": 100000,
        "cpu,cpuacct/cpu.cfs_quota_us": -1,
        "cpu,cpuacct/cpu.cfs_period_us": 100000,
        "memory/b/c/memory.limit_in_bytes": UNLIMITED,
        "memory/b/memory.limit_in_bytes": 5 * GIB,
    }
    groups = "4:memory:/b/c\n2:cpu,cpuacct:/a\n1:name=systemd:/x"
    assert limits(tree(tmp_path, V1, groups, files)) == (3, 5 * GIB)


def test_a_hybrid_has_its_limits_in_version_1(tmp_path):
    files = {
        "memory/job/memory.limit_in_bytes": GIB,
        "unified/job/cgroup.procs": 1,
        "cpu,cpuacct/cpu.cfs_quota_us": -1,
        "cpu,cpuacct/cpu.cfs_period_us": 100000,
    }
    groups = "4:memory:/job\n2:cpu,cpuacct:/\n0::/job"
    assert limits(tree(tmp_path, HYBRID, groups, files)) == (None, GIB)


# Docker of version 1 mounts the container's own group, and names it by its path on the host.
@pytest.mark.parametrize("path", ["/docker/1f", "/elsewhere", "/../other"])
def test_a_container_sees_its_own_group_at_the_top(tmp_path, path):
    mounts = "35 31 0:32 /docker/1f /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
    root = tree(tmp_path, mounts, f"4:memory:{path}", {"memory/memory.limit_in_bytes": GIB})
    assert limits(root) == (None, GIB)


@pytest.mark.parametrize(
    ("mounts", "groups", "files"),
    [
        ("", "", {}),
        (V2, "", {"memory.max": GIB}),
        (V2, "0::/", {}),
        (V2, "0::/job", {"job/cpu.max": "max 100000", "job/memory.max": "max"}),
        (V2, "0::/job", {"job/cpu.max": "", "job/memory.max": ""}),
        (V2, "nonsense", {"memory.max": GIB}),
        ("nonsense\n1 2 - cgroup2", "0::/", {"memory.max": GIB}),
        (V1, "4:memory:/", {"memory/cpu.cfs_quota_us": 5, "cpu,cpuacct/cpu.cfs_period_us": 5}),
    ],
)
def test_where_nothing_is_said_there_is_no_limit(tmp_path, mounts, groups, files):
    assert limits(tree(tmp_path, mounts, groups, files)) == (None, None)


def test_without_proc_there_is_no_limit(tmp_path):
    assert limits(tmp_path / "none") == (None, None)


def test_less_than_a_core_is_one(tmp_path):
    root = tree(tmp_path, V2, "0::/", {"cpu.max": "10000 100000"})
    assert cgroup_cores(root) == 1


# A space in the name of a mount is written as \040.
def test_a_mount_with_a_space(tmp_path):
    mounts = V2.replace("/sys/fs/cgroup", "/sys/fs/my\\040cgroup")
    root = tree(tmp_path, mounts, "0::/", {"../my cgroup/memory.max": GIB})
    assert limits(root) == (None, GIB)


@pytest.mark.parametrize(("granted", "expected"), [(None, 6), (4, 4), (8, 6)])
def test_the_lesser_of_affinity_and_quota_counts(monkeypatch, granted, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    monkeypatch.setattr(machine, "cgroup_cores", lambda root: granted)
    assert n_cores() == expected
    assert cores_by_quota() == (4 if granted == 4 else None)


@pytest.mark.parametrize(
    ("of_group", "address_space", "expected", "of_four"),
    [
        (None, resource.RLIM_INFINITY, (16 * GIB, ""), (4 * GIB, "")),
        (MemoryLimit(UNLIMITED, "x"), resource.RLIM_INFINITY, (16 * GIB, ""), (4 * GIB, "")),
        (MemoryLimit(GIB, "x"), 2 * GIB, (GIB, "x"), (GIB // 4, SHARED)),
        (MemoryLimit(3 * GIB, "x"), 2 * GIB, (2 * GIB, "ulimit -v"), (3 * GIB // 4, SHARED)),
        (None, 2 * GIB, (2 * GIB, "ulimit -v"), (2 * GIB, "ulimit -v")),
    ],
)
def test_the_least_limit_of_memory_counts(monkeypatch, of_group, address_space, expected, of_four):
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 16 * GIB // 4096}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (address_space, address_space))
    monkeypatch.setattr(machine, "cgroup_memory", lambda root: of_group)
    assert memory_limit() == MemoryLimit(*expected)
    # Processes share what is the machine's or the job's; `ulimit -v` each has for itself.
    assert memory_limit(4) == MemoryLimit(*of_four)


@pytest.mark.parametrize(
    ("info", "name"),
    [
        ("processor\t: 0\nmodel name\t: AMD EPYC 9B45\nflags\t: fpu\n", "AMD EPYC 9B45 "),
        ("CPU implementer\t: 0x41\nCPU part\t: 0xd4f\n", "0x41 0xd4f "),
        (None, ""),
    ],
)
def test_a_processor_has_a_name(info, name, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    if info is not None:
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc" / "cpuinfo").write_text(info)
    assert processor_name() == name + os.uname().machine
