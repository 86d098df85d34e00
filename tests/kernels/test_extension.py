"""The compiled extension: that it was built, its threads, and who may have the cores."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from streamkm.kernels.cpu import CpuKernel
from streamkm.kernels.extension import cores_for_kernels, instruction_sets, n_threads_for
from streamkm.runs.planning.memory import PANEL_LANES
from tests.kernels.contract import normal, sq_norms

CPU = torch.device("cpu")


# Breaks when the extension silently was not built: everything below would be skipped.
def test_the_extension_is_built_here() -> None:
    assert [entry.name for entry in instruction_sets()][-1] == "baseline"


# Breaks when a wider instruction set makes the kernel's copy of the centroids outgrow the plan.
def test_panels_are_no_wider_than_the_memory_plan_counts() -> None:
    for entry in instruction_sets():
        assert max(entry.float32_panel, entry.float64_panel) <= PANEL_LANES


# Breaks when loops of two callers mix: each has rows, labels and a number of tasks of its own.
def test_many_callers_at_once() -> None:
    def labels_right(seed: int) -> bool:
        x_BD = normal(3000 + 97 * seed, 40 + seed, dtype=torch.float32, device=CPU)
        centroids_KD = x_BD[: 50 + seed].clone()
        kernel = CpuKernel(len(x_BD), len(centroids_KD), torch.float32, CPU)
        sums_KD, counts_K = torch.zeros_like(centroids_KD).double(), torch.zeros(50 + seed).long()
        first = kernel.assign(x_BD, sq_norms(x_BD), centroids_KD).labels_B
        for _ in range(20):
            again = kernel.assign(x_BD, sq_norms(x_BD), centroids_KD).labels_B
            kernel.accumulate(x_BD, again, sums_KD=sums_KD, counts_K=counts_K)
            if not torch.equal(first, again):
                return False
        nearest_B = torch.cdist(x_BD.double(), centroids_KD.double()).argmin(dim=1)
        expected_K = 20 * torch.bincount(first, minlength=50 + seed)
        return torch.equal(first, nearest_B) and torch.equal(counts_K, expected_K)

    with ThreadPoolExecutor(6) as threads:
        assert all(threads.map(labels_right, range(12)))


FORKED = """
import os, sys, torch
from streamkm.kernels.cpu import CpuKernel

torch.set_num_threads(3)
x_BD = torch.randn(5000, 64, generator=torch.Generator().manual_seed(0))
sq_norms_B = x_BD.square().sum(dim=1)  # Here: OpenMP, which has torch's sums, hangs in a child.
kernel = CpuKernel(5000, 100, torch.float32, torch.device("cpu"))

def labels():
    return kernel.assign(x_BD, sq_norms_B, x_BD[:100]).labels_B

before = labels()
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(before, labels()) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


# Breaks (hangs) when a child waits for threads that only its parent has.
def test_a_child_process_has_threads_of_its_own() -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORKED]
    assert subprocess.run(command, check=False, timeout=60).returncode == 0


def n_choosable_processors() -> int:
    """Those that a thread may be kept to here; 0 where the system knows or grants no such wish."""
    try:
        os.sched_setaffinity(0, allowed := os.sched_getaffinity(0))
    except (AttributeError, OSError):  # macOS; a container or service that forbids it
        return 0
    return len(allowed)


# Breaks when a thread of the pool may be woken where its caller runs: it waits there
# until all is done, although another is idle.
@pytest.mark.skipif(
    n_choosable_processors() < 2, reason="one processor, or threads may not be kept to some"
)
def test_threads_keep_off_the_processor_of_their_caller() -> None:
    code = """
import os, time, torch
from streamkm.kernels.cpu import CpuKernel

torch.set_num_threads(2)
allowed, x_BD = os.sched_getaffinity(0), torch.randn(4000, 64)
before = set(os.listdir("/proc/self/task"))
kernel = CpuKernel(4000, 64, torch.float32, torch.device("cpu"))
for _ in range(100):
    kernel.assign(x_BD, x_BD.square().sum(dim=1), x_BD[:64].clone())
    time.sleep(0.01)
    started = set(os.listdir("/proc/self/task")) - before
    if any(len(os.sched_getaffinity(int(task))) == len(allowed) - 1 for task in started):
        break
else:
    raise SystemExit("every thread may run anywhere")
assert os.sched_getaffinity(0) == allowed
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# Breaks when one of two that hold the cores gives back what the other found, or neither does.
def test_cores_are_held_by_several_at_once() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    entered, left = threading.Event(), threading.Event()
    seen: list[int] = []

    def other() -> None:
        with cores_for_kernels("cpu"):
            seen.append(n_threads_for(1 << 30))
            entered.set()
            left.wait(60)
            seen.append(n_threads_for(1 << 30))
        seen.append(torch.get_num_threads())

    thread = threading.Thread(target=other)
    try:
        with cores_for_kernels("cpu"):
            assert torch.get_num_threads() == 1
            thread.start()
            assert entered.wait(60)
            assert n_threads_for(1 << 30) == 3
        assert torch.get_num_threads() == 3
        left.set()
        thread.join(60)
        assert seen == [3, 3, 3]
        assert n_threads_for(1 << 30) == torch.get_num_threads() == 3
        with cores_for_kernels("reference"):
            assert torch.get_num_threads() == 3
    finally:
        left.set()
        torch.set_num_threads(before)
