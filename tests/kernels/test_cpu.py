"""The compiled kernel, on every instruction set that this processor has."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch

from streamkm.errors import DeviceError
from streamkm.kernels import cpu, resolve_kernel
from streamkm.kernels.cpu import CpuKernel
from streamkm.kernels.extension import cores_for_kernels, instruction_sets, n_threads_for
from streamkm.runs.planning.memory import PANEL_LANES
from tests.kernels.contract import KernelContract, normal, sq_norms

CPU = torch.device("cpu")


# Breaks when the extension silently was not built: everything below would be skipped.
def test_the_extension_is_built_here() -> None:
    assert [entry.name for entry in instruction_sets()][-1] == "baseline"


@pytest.fixture(params=instruction_sets(), ids=lambda entry: entry.name)
def make(request):
    return partial(CpuKernel, instruction_set=request.param)


class TestCpuKernel(KernelContract):
    @pytest.fixture
    def make(self, make):
        return make


# Breaks when the last tile, panel, block or group of panels is cut off, or read beyond.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("b", [1, 11, 12, 13, 191, 192, 193, 400])
@pytest.mark.parametrize("k", [1, 31, 32, 33, 64, 200])
@pytest.mark.parametrize("d", [1, 5, 16, 17, 700])
def test_agrees_with_distances_at_every_edge(make, b, k, d, dtype) -> None:
    x_BD, c_KD = normal(b, d, dtype=dtype, device=CPU), normal(k, d, dtype=dtype, device=CPU)
    labels_B, sq_distances_B = make(b, k, dtype, CPU).assign(x_BD, sq_norms(x_BD), c_KD)
    expected_BK = torch.cdist(
        x_BD.double(), c_KD.double(), compute_mode="donot_use_mm_for_euclid_dist"
    )
    assert torch.equal(labels_B, expected_BK.argmin(dim=1))
    tolerance = 1e-3 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(
        sq_distances_B.double(), expected_BK.amin(dim=1).square(), rtol=tolerance, atol=tolerance
    )


# Breaks when a slice of columns, or the columns behind the last vector, is left out.
@pytest.mark.parametrize(
    "d", [1, 3, 4, 5, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 130, 144, 145, 259, 700]
)
def test_sums_of_every_width(make, d) -> None:
    x_BD = torch.arange(500 * d, dtype=torch.float32).reshape(500, d) % 251
    labels_B = torch.arange(500) * 7 % 9
    labels_B[labels_B == 4] = 0
    sums_KD, counts_K = torch.zeros((9, d)), torch.zeros(9, dtype=torch.int64)
    make(500, 9, torch.float32, CPU).accumulate(x_BD, labels_B, sums_KD=sums_KD, counts_K=counts_K)
    expected_KD = torch.zeros((9, d)).index_add_(0, labels_B, x_BD)
    assert torch.equal(sums_KD, expected_KD)
    assert torch.equal(counts_K, labels_B.bincount(minlength=9))


# Breaks when rows are added one after the other: of equal ones each addition then rounds alike.
@pytest.mark.parametrize("d", [3, 130])
def test_sums_of_many_equal_rows(make, d) -> None:
    row_D = torch.linspace(0.1, 2.3, d)
    sums_KD, counts_K = torch.zeros((1, d)), torch.zeros(1, dtype=torch.int64)
    make(16000, 1, torch.float32, CPU).accumulate(
        row_D.repeat(16000, 1), torch.zeros(16000).long(), sums_KD=sums_KD, counts_K=counts_K
    )
    torch.testing.assert_close(sums_KD[0], 16000 * row_D, rtol=1e-5, atol=0)


# Breaks when one bad centroid, or a score that overflows, decides other rows' labels.
@pytest.mark.parametrize("far", [1e18, 1e25])
def test_a_centroid_out_of_range_is_nobody_s(make, far) -> None:
    c_KD = normal(40, 6, dtype=torch.float32, device=CPU)
    x_BD = normal(100, 6, dtype=torch.float32, device=CPU)
    expected_B = make(100, 40, torch.float32, CPU).assign(x_BD, sq_norms(x_BD), c_KD).labels_B
    c_KD = torch.cat((torch.full((1, 6), far), c_KD))
    labels_B = make(100, 41, torch.float32, CPU).assign(x_BD, sq_norms(x_BD), c_KD).labels_B
    assert torch.equal(labels_B, expected_B + 1)


# Breaks when fast looks again after all, or exact does not say how often it did.
def test_precision_fast_takes_what_screening_says(make) -> None:
    x_BD = torch.zeros((5, 3))
    c_KD = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    exact, fast = (
        make(5, 2, torch.float32, CPU, precision=precision) for precision in ("exact", "fast")
    )
    for kernel in (exact, fast):
        assert kernel.assign(x_BD, sq_norms(x_BD), c_KD).sq_distances_B.tolist() == [1.0] * 5
    assert int(exact.n_rechecked) == 5
    assert int(fast.n_rechecked) == 0


# Breaks when addresses are passed on unchecked: the extension would write beyond arrays.
def test_refuses_what_it_has_no_room_for() -> None:
    kernel = CpuKernel(10, 4, torch.float32, CPU)
    x_BD, c_KD = torch.zeros((10, 3)), torch.zeros((4, 3))
    for rows, norms, centroids in (
        (torch.zeros((11, 3)), torch.zeros(11), c_KD),
        (x_BD, torch.zeros(9), c_KD),
        (x_BD, torch.zeros(10), torch.zeros((4, 2))),
        (x_BD, torch.zeros(10), torch.zeros((1000, 3))),
        (x_BD.double(), torch.zeros(10), c_KD),
        (x_BD, torch.zeros(10), c_KD.double()),
    ):
        with pytest.raises(ValueError, match=r"kernel|rows"):
            kernel.assign(rows, norms, centroids)
    sums_KD, counts_K = torch.zeros((4, 3)), torch.zeros(4, dtype=torch.int64)
    for labels, sums in (
        (torch.full((10,), 4), sums_KD),
        (torch.full((10,), -1), sums_KD),
        (torch.zeros(9, dtype=torch.int64), sums_KD),
        (torch.zeros(10, dtype=torch.int32), sums_KD),
        (torch.zeros(10, dtype=torch.int64), torch.zeros((3, 4)).T),
    ):
        with pytest.raises(ValueError, match=r"labels|kernel"):
            kernel.accumulate(x_BD, labels, sums_KD=sums, counts_K=counts_K)
    assert not sums_KD.any()
    assert not counts_K.any()


# Breaks when buffers are made wherever torch makes them by default, and addressed on the CPU.
def test_default_device_of_torch_does_not_matter(make) -> None:
    x_BD, c_KD = normal(50, 3, dtype=torch.float32, device=CPU), torch.eye(3)
    expected = make(50, 3, torch.float32, CPU).assign(x_BD, sq_norms(x_BD), c_KD)
    sums_KD, counts_K = torch.zeros((3, 3)), torch.zeros(3, dtype=torch.int64)
    norms_B = sq_norms(x_BD)
    with torch.device("meta"):
        kernel = make(50, 3, torch.float32, CPU)
        labels_B, distances_B = kernel.assign(x_BD, norms_B, c_KD)
        kernel.accumulate(x_BD, labels_B, sums_KD=sums_KD, counts_K=counts_K)
    assert torch.equal(labels_B, expected.labels_B)
    assert torch.equal(distances_B, expected.sq_distances_B)
    assert counts_K.sum() == 50


# Breaks when a kernel that was asked for falls back in silence.
def test_an_extension_that_is_missing_is_said(monkeypatch) -> None:
    with pytest.raises(DeviceError, match="needs the CPU, the device is cuda; use kernel='auto'"):
        resolve_kernel("cpu", torch.device("cuda"))
    monkeypatch.setattr(cpu, "instruction_sets", tuple)
    monkeypatch.setattr(cpu, "WHY_MISSING", "was not built, for want of a C++ compiler")
    with pytest.raises(DeviceError, match="C\\+\\+ compiler"):
        CpuKernel(10, 4, torch.float32, CPU)


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
        sums_KD, counts_K = torch.zeros_like(centroids_KD), torch.zeros(50 + seed).long()
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
