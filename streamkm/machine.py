"""Says how many cores and how much memory this process may use: the job's, not the machine's.

A batch system or a container gives a job a part of a machine: by an affinity (taskset, SLURM's
cpusets), by a quota of processor time, and by a limit on memory. The last two are files of
control groups, version 1 or 2 or both, and a limit of any group above counts too. Imports neither
torch nor NumPy: the memory plan is made before torch is imported.
"""

from __future__ import annotations

import functools
import os
import platform
import resource
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "MemoryLimit",
    "available_memory",
    "cgroup_cores",
    "cgroup_memory",
    "cores_by_quota",
    "memory_limit",
    "n_cores",
    "processor_name",
]

#: The folder that holds ``proc`` and ``sys``.
ROOT = Path("/")


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """The bytes that this process may use, and who says so."""

    n_bytes: int
    origin: str
    """What sets the limit, in words; empty if it is the machine's own memory."""


def n_cores() -> int:
    """Cores that this process may use, at least 1: by its affinity and its control groups."""
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    granted = cgroup_cores(ROOT)
    return allowed if granted is None else min(allowed, granted)


def processor_name() -> str:
    """The model of the processor, as the system names it."""
    info = ROOT / "proc/cpuinfo"
    lines = info.read_text().splitlines() if info.exists() else []
    # On ARM there is no name, but numbers of the maker and of the model.
    known = ("model name", "CPU implementer", "CPU part")
    found = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines}
    named = [found[key] for key in known if key in found]
    return " ".join([*named, platform.machine()])


def cores_by_quota() -> int | None:
    """`n_cores` where a quota of processor time decides it, else None."""
    granted, allowed = cgroup_cores(ROOT), n_cores()
    return allowed if granted == allowed else None


@functools.cache
def cgroup_cores(root: Path) -> int | None:
    """Cores whose time the control groups grant, rounded up; None if they set no quota.

    `root` is the folder that holds ``proc`` and ``sys``.
    """
    granted = []
    for folder in _groups(root, "cpu"):
        # Version 2 has both numbers in one file, version 1 has a file for each.
        words = (_read(folder / "cpu.max") or _read(folder / "cpu.cfs_quota_us")).split()
        words += _read(folder / "cpu.cfs_period_us").split()
        quota, period = (_number(word) for word in [*words, "", ""][:2])
        if quota is not None and period:
            granted.append(-(-quota // period))
    return max(min(granted), 1) if granted else None


def memory_limit(n_processes: int = 1) -> MemoryLimit:
    """The least of the machine's memory, the limits of control groups and ``ulimit -v``.

    The first two are divided by `n_processes`, the processes of a run on this machine; the third
    each of them has for itself.
    """
    n_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // n_processes
    limits = [MemoryLimit(n_bytes, "")]
    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if address_space != resource.RLIM_INFINITY:
        limits.append(MemoryLimit(address_space, "ulimit -v"))
    if (of_group := cgroup_memory(ROOT)) is not None:
        shared = f", divided by {n_processes} processes" if n_processes > 1 else ""
        share = of_group.n_bytes // n_processes
        limits.append(MemoryLimit(share, f"{of_group.origin}{shared}"))
    return min(limits, key=lambda limit: limit.n_bytes)


def available_memory() -> int:
    """Bytes of the machine's memory that a program can take and others need not give up."""
    for line in _read(ROOT / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


@functools.cache
def cgroup_memory(root: Path) -> MemoryLimit | None:
    """The least limit of the control groups; None if there is none. `root` as before."""
    limits = []
    for folder in _groups(root, "memory"):
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
            n_bytes = _number(_read(folder / name).strip())
            if n_bytes is not None:
                place = f"/{(folder / name).relative_to(root).as_posix()}"
                limits.append(MemoryLimit(n_bytes, f"cgroup limit {place}"))
    return min(limits, key=lambda limit: limit.n_bytes, default=None)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the groups of this process that may limit `controller`, innermost first."""
    paths = _paths(root)
    for line in _read(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2) if after.count(" ") >= 2 else ("", "", "")
        fields = before.split()
        if kind == "cgroup2":
            path = paths.get("")
        elif kind == "cgroup" and controller in options.split(","):
            path = paths.get(controller)
        else:
            continue
        if path is None or len(fields) < 5:
            continue
        top, place = fields[3], root / _unescaped(fields[4]).lstrip("/")
        yield from _from_group_to_top(place, path, _unescaped(top))


def _from_group_to_top(place: Path, path: str, top: str) -> Iterator[Path]:
    """The folder of group `path` and all above it, where group `top` is mounted at `place`."""
    group = PurePosixPath(path)
    # In a container the path may lie outside of what is mounted: then the top is all there is.
    names = group.relative_to(top).parts if group.is_relative_to(top) and ".." not in path else ()
    for depth in range(len(names), -1, -1):
        yield place.joinpath(*names[:depth])


def _paths(root: Path) -> dict[str, str]:
    """The path of this process's group by controller of version 1; by ``""`` for version 2."""
    paths = {}
    for line in _read(root / "proc/self/cgroup").splitlines():
        if line.count(":") >= 2:
            _, controllers, path = line.split(":", 2)
            paths.update(dict.fromkeys(controllers.split(","), path))
    return paths


def _unescaped(path: str) -> str:
    """A path of mountinfo, where a space is written by its number in octal."""
    return path.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")


def _read(path: Path) -> str:
    """The content of a file of the kernel; empty where there is none."""
    try:
        return path.read_text("utf-8", "surrogateescape")
    except OSError:
        return ""


def _number(word: str) -> int | None:
    """A limit as a number; None for ``max``, -1 and nothing, which are no limit."""
    return int(word) if word.isdecimal() else None
