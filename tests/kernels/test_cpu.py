"""The compiled kernel, on every instruction set, of rows in memory of their own and in windows."""

from __future__ import annotations

import ctypes
import mmap
from functools import cache, partial

import numpy as np
import pytest
import torch

from streamkm.errors import DeviceError
from streamkm.kernels import (
    PassSums,
    cpu,
    resolve_kernel,
    sq_distances_to,
)
from streamkm.kernels.cpu import CpuKernel
from streamkm.kernels.extension import instruction_sets
from streamkm.kernels.ops import graded, tiles
from streamkm.kernels.ops.gather import gather
from streamkm.kernels.reference import ReferenceKernel
from tests.kernels.contract import KernelContract, normal, permuted, sq_norms

CPU = torch.device("cpu")


@pytest.fixture(params=instruction_sets(), ids=lambda entry: entry.name)
def make(request):
    return partial(CpuKernel, instruction_set=request.param)


class TestCpuKernel(KernelContract):
    @pytest.fixture
    def make(self, make):
        return make


# Breaks when the last tile, panel, block or group of panels is cut off, or read beyond.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("k", [1, 31, 32, 33, 64, 200])
@pytest.mark.parametrize("d", [1, 5, 16, 17, 700])
def test_agrees_with_distances_at_every_edge(make, k, d, dtype) -> None:
    x_BD, c_KD = normal(400, d, dtype=dtype, device=CPU), normal(k, d, dtype=dtype, device=CPU)
    sq_norms_B = sq_norms(x_BD)
    expected_BK = torch.cdist(
        x_BD.double(), c_KD.double(), compute_mode="donot_use_mm_for_euclid_dist"
    )
    tolerance = 1e-3 if dtype == torch.float32 else 1e-9
    close = partial(torch.testing.assert_close, rtol=tolerance, atol=tolerance)
    for b in (1, 11, 12, 13, 191, 192, 193, 400):
        # (Behind the last row there is no memory of its own.)
        own_BD = x_BD[:b].clone()
        labels_B, sq_distances_B = make(b, k, dtype, CPU).assign(own_BD, sq_norms_B[:b], c_KD)
        assert torch.equal(labels_B, expected_BK[:b].argmin(dim=1))
        close(sq_distances_B.double(), expected_BK[:b].amin(dim=1).square())


PLAIN_ROWS = normal(700, 96, dtype=torch.float64, device=CPU)
PLAIN = normal(600, 96, dtype=torch.float64, device=CPU)
SAME = PLAIN[:1].repeat(600, 1)
ONE_FAR, ROW_FAR, NOT_NUMBERS = PLAIN.clone(), PLAIN_ROWS.clone(), PLAIN.clone()
ONE_FAR[-1] *= 1e6
ROW_FAR[-1] *= 1e9
NOT_NUMBERS[::3] = torch.nan

# Rows and centroids among which eight bits cannot decide, or nearly not.
HARD_POINTS = {
    "plain": (PLAIN_ROWS, PLAIN),
    "far from zero": (PLAIN_ROWS + 1000, PLAIN + 1000),
    "all centroids equal": (PLAIN_ROWS, SAME),
    "five centroids, many times": (PLAIN_ROWS, PLAIN[torch.arange(600) % 5]),
    "centroids within 1e-7": (PLAIN_ROWS, SAME + 1e-7 * PLAIN),
    "centroids within 1e-3": (PLAIN_ROWS, SAME + 1e-3 * PLAIN),
    "a centroid far away": (PLAIN_ROWS, ONE_FAR),
    "a row far away": (ROW_FAR, PLAIN),
    "rows half way between centroids": (
        (PLAIN[torch.arange(700) % 600] + PLAIN[torch.arange(700) * 7 % 600]) / 2,
        PLAIN,
    ),
    "rows that are centroids": (PLAIN[torch.arange(700) % 600], PLAIN),
    "long and short features": (PLAIN_ROWS**5, PLAIN**5),
    "subnormal": (PLAIN_ROWS * 1e-41, PLAIN * 1e-41),
    "short rows": (PLAIN_ROWS * 1e-38, PLAIN),
    **{f"all of {size}": (PLAIN_ROWS * size, PLAIN * size) for size in (1e-18, 1e-21, 1e-23)},
    "near the end of float32": (PLAIN_ROWS * 3e17, PLAIN * 3e17),
    "zeros": (torch.zeros_like(PLAIN_ROWS), PLAIN),
    "whole numbers": ((PLAIN_ROWS * 2).round(), (PLAIN * 2).round()),
    "some centroids are not numbers": (PLAIN_ROWS, NOT_NUMBERS),
    # Numbers of one size: sums of products are as large as they can be.
    "signs": (PLAIN_ROWS.sign(), PLAIN.sign()),
    "opposite signs": (-PLAIN.sign(), PLAIN.sign()),
}


# Breaks when a bound is too narrow, a candidate is lost, or rows near many centroids are.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", HARD_POINTS)
def test_labels_of_many_centroids_are_those_of_brute_force(make, case, dtype) -> None:
    rows_BD, c_KD = (points.to(dtype) for points in HARD_POINTS[case])
    expected_BK = torch.cdist(
        rows_BD.double(), c_KD.double(), compute_mode="donot_use_mm_for_euclid_dist"
    ).square()
    expected_BK[expected_BK.isnan()] = torch.inf
    labels_B, sq_distances_B = make(700, 600, dtype, CPU).assign(rows_BD, sq_norms(rows_BD), c_KD)
    found_B = expected_BK.gather(1, labels_B[:, None]).squeeze(1)
    # (torch adds squares in another order: which of two as near is the nearer may differ.)
    torch.testing.assert_close(found_B, expected_BK.amin(dim=1), rtol=1e-14, atol=0)
    torch.testing.assert_close(sq_distances_B.double(), found_B, rtol=1e-6, atol=1e-42)


def excess(rows_BD: torch.Tensor, c_KD: torch.Tensor, labels_B: torch.Tensor) -> float:
    """How much farther labels are than the nearest by brute force in float64, as a share."""
    found_BK = torch.cdist(
        rows_BD.double(), c_KD.double(), compute_mode="donot_use_mm_for_euclid_dist"
    ).square()
    found_BK[found_BK.isnan()] = torch.inf
    least_B = found_BK.amin(dim=1)
    found_B = found_BK.gather(1, labels_B[:, None]).squeeze(1)
    return float(((found_B - least_B) / least_B.clamp_min(1e-300)).max())


# Breaks when few features, or few centroids, have a bound that is too narrow; or a row that is no
# number spoils others.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("d", [16, 31, 96])
def test_labels_of_few_centroids_are_those_of_brute_force(make, d, dtype) -> None:
    kernel = make(65, 40, dtype, CPU)
    for case, points in HARD_POINTS.items():
        rows_BD, c_KD = (each[:40, :d].to(dtype) for each in points)
        rows_BD = torch.cat((rows_BD, points[0][-25:, :d].to(dtype)))
        rows_BD[[3, 50]] = torch.tensor([[torch.nan], [torch.inf]], dtype=dtype)
        most = torch.finfo(dtype).max / 4
        found = kernel.assign_in_place(rows_BD, None, c_KD, most_sq_norm=most, exact=True)
        assert found.dropped_B.nonzero().flatten().tolist() == [3, 50]
        good_B = ~found.dropped_B
        assert excess(rows_BD[good_B], c_KD, found.labels_B[good_B]) < 1e-14, case


# Breaks when rounding decides between thousands of centroids that are nearly one.
@pytest.mark.parametrize("d", [16, 96])
def test_thousands_of_centroids_within_rounding(make, d) -> None:
    rows_BD = PLAIN_ROWS[:60, :d].float()
    c_KD = (PLAIN[0, :d] + 1e-7 * normal(3000, d, dtype=torch.float64, device=CPU)).float()
    labels_B, _ = make(60, 3000, torch.float32, CPU).assign(rows_BD, sq_norms(rows_BD), c_KD)
    assert excess(rows_BD, c_KD, labels_B) < 1e-14


# Breaks when the place of a number in a window is computed in 32 bits.
def test_windows_of_more_numbers_than_32_bits_count(make) -> None:
    n_rows, d = 2**25 + 5, 64
    # Pages that nobody writes take no memory.
    pages = mmap.mmap(-1, n_rows * d * 4, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    window_ND = torch.frombuffer(pages, dtype=torch.float32).view(n_rows, d)
    c_KD = normal(5, d, dtype=torch.float32, device=CPU)
    positions_B = torch.tensor([1, n_rows - 1, 2**25, n_rows - 3], dtype=torch.int32)
    window_ND[positions_B.long()] = c_KD[[4, 2, 0, 3]]
    kernel = make(4, 5, torch.float32, CPU)
    found = kernel.assign_in_place(window_ND, positions_B, c_KD, most_sq_norm=MOST, exact=True)
    assert found.labels_B.tolist() == [4, 2, 0, 3]
    sums_KD, counts_K = torch.zeros((5, d)).double(), torch.zeros(5).long()
    kernel.accumulate(
        window_ND, found.labels_B, sums_KD=sums_KD, counts_K=counts_K, positions_B=positions_B
    )
    assert torch.equal(sums_KD[[4, 2, 0, 3]].float(), c_KD[[4, 2, 0, 3]])


@cache
def exact_points(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows, centroids and labels. Coordinates are multiples of 2^-12 below 2^6: float64 computes
    their distances without rounding, so that brute force is exact arithmetic.
    """
    draw = np.random.default_rng(seed)
    n_features, k = int(draw.integers(20, 200)), int(draw.integers(256, 900))
    spread = 2.0 ** draw.integers(-11, 3)
    middle = draw.normal(size=n_features) * 2.0 ** draw.integers(-3, 4)

    def points(n: int, scale: float) -> torch.Tensor:
        drawn = middle + scale * draw.normal(size=(n, n_features))
        return torch.from_numpy((np.clip(drawn, -60, 60) * 4096).round() / 4096)

    c_KD, rows_BD = points(k, spread), points(200, spread * 2.0 ** draw.integers(-2, 4))
    labels_B = torch.stack([(c_KD - row).square().sum(dim=1).argmin() for row in rows_BD])
    return rows_BD.float(), c_KD.float(), labels_B


# Breaks when a bound is narrower than it says.
@pytest.mark.parametrize("seed", range(12))
def test_labels_of_many_centroids_are_those_of_exact_arithmetic(make, seed) -> None:
    rows_BD, c_KD, expected_B = exact_points(seed)
    # (Fewer bits are for calls of more rows than these.)
    for n_times in (1, 3):
        many_BD = rows_BD.repeat(n_times, 1)
        kernel = make(len(many_BD), len(c_KD), torch.float32, CPU)
        labels_B, _ = kernel.assign(many_BD, sq_norms(many_BD), c_KD)
        assert torch.equal(labels_B, expected_B.repeat(n_times))


# Breaks when rows that screening in bytes leaves to the scores lose their places or lengths.
def test_many_centroids_in_a_window_with_dropped_rows(make) -> None:
    window_ND, c_KD = (points.float() for points in HARD_POINTS["five centroids, many times"])
    window_ND[3] = torch.nan
    window_ND[5, 7] = torch.inf
    positions_B = permuted(700, 650)
    kernel = make(650, 600, torch.float32, CPU)
    found = kernel.assign_in_place(window_ND, positions_B, c_KD, most_sq_norm=1e30, exact=True)
    rows_BD = window_ND[positions_B.long()]
    dropped_B = ~rows_BD.isfinite().all(dim=1)
    assert torch.equal(found.dropped_B, dropped_B)
    rows_BD = rows_BD.masked_fill(dropped_B[:, None], 0)
    assert torch.equal(found.sq_norms_B, sq_norms(rows_BD))
    expected_BK = torch.cdist(
        rows_BD.double(), c_KD.double(), compute_mode="donot_use_mm_for_euclid_dist"
    ).square()
    torch.testing.assert_close(found.sq_distances_B, expected_BK.amin(dim=1), rtol=1e-12, atol=0)
    assert int(found.labels_B.max()) < 5  # The lowest of equal centroids.


# Breaks when rows added in the call that assigns them give other bits than in a call of their own:
# by a dropped row, a cluster so large that threads share it, an empty one, or a grade that is lost.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n_threads", [1, 2])
def test_rows_added_at_once_are_those_added_later(make, dtype, n_threads, monkeypatch) -> None:
    monkeypatch.setattr(tiles, "n_threads_for", lambda _products: n_threads)
    monkeypatch.setattr(graded, "n_threads_for", lambda _products: n_threads)
    for d, k, far in ((3, 40, 0.0), (70, 40, 9.0), (19, 300, 0.0)):
        window_ND, c_KD = (
            normal(900, d, dtype=dtype, device=CPU),
            normal(k, d, dtype=dtype, device=CPU),
        )
        c_KD[1:] += far  # Nearly all rows are of cluster 0.
        c_KD[k - 1] = 1e15  # No row.
        window_ND[7] = torch.nan
        kernel = make(800, k, dtype, CPU)
        totals = []
        counts = torch.zeros((2, k), dtype=torch.int64)
        for at_once in (True, False):
            counts.zero_()
            sums_LKD = torch.zeros((2, k, d), dtype=torch.int64)
            grades_K = torch.full((k,), graded.LEAST_GRADE)
            for positions_B, size in ((permuted(900, 800), 1.0), (None, 1e9)):
                x_ND = window_ND * size if positions_B is not None else window_ND[:500] * size
                if at_once:
                    added = PassSums(sums_LKD, grades_K, (counts[0], counts[1]))
                    found = kernel.assign_and_add(
                        x_ND, positions_B, c_KD, most_sq_norm=MOST, added=added, unit=0.25
                    )
                else:
                    found = kernel.assign_in_place(
                        x_ND, positions_B, c_KD, most_sq_norm=MOST, exact=True
                    )
                    sums_KD = torch.zeros((k + 1, d), dtype=torch.float64)
                    counts_K = torch.zeros(k + 1, dtype=torch.int64)
                    kernel.accumulate(
                        x_ND, found.labels_B.masked_fill(found.dropped_B, k),
                        sums_KD=sums_KD, counts_K=counts_K, positions_B=positions_B,
                    )  # fmt: skip
                    unit = torch.tensor(0.25, dtype=torch.float64)
                    graded.add_graded_(sums_LKD, grades_K, sums_KD[:k], unit)
                    counts += counts_K[:k]
                totals += [each.clone() for each in (*found, sums_LKD, grades_K, counts)]
        half = len(totals) // 2
        assert all(map(torch.equal, totals[:half], totals[half:]))
        assert counts[0, k - 1] == 0
        assert counts[0].sum() == 1300 - 2


# Breaks when rows are added to memory that is too small.
def test_refuses_sums_of_other_shapes() -> None:
    kernel, x_ND = CpuKernel(5, 2, torch.float32, CPU), torch.zeros((5, 3))
    counts_K = torch.zeros(2, dtype=torch.int64)
    wrong = (
        (torch.zeros((2, 1, 3), dtype=torch.int64), "must be of shape \\(2, 2, 3\\)"),
        (torch.zeros((2, 2, 3)), "must be int64 and contiguous"),
    )
    for sums_LKD, rule in wrong:
        added = PassSums(sums_LKD, counts_K, (counts_K, counts_K))
        with pytest.raises(ValueError, match=rule):
            kernel.assign_and_add(x_ND, None, x_ND[:2], most_sq_norm=MOST, added=added, unit=1.0)


def test_refuses_more_rows_than_int32_numbers() -> None:
    with pytest.raises(ValueError, match="fewer than 2,147,483,648"):
        CpuKernel(2**31, 2, torch.float32, CPU)


# Breaks when who comes first decides which rows are screened in bytes.
@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_threads_do_not_show_where_screening_is_in_vain(make, precision, monkeypatch) -> None:
    rows_BD, c_KD = (points.float() for points in HARD_POINTS["five centroids, many times"])
    rows_BD = torch.cat([PLAIN_ROWS.float() * 3 + 40, rows_BD]).repeat(8, 1)
    found = []
    for n_threads in (1, 2, 2):
        kernel = make(len(rows_BD), 600, torch.float32, CPU, precision)
        monkeypatch.setattr(tiles, "n_threads_for", lambda _products, n=n_threads: n)
        labels_B, _ = kernel.assign(rows_BD, sq_norms(rows_BD), c_KD)
        found.append((labels_B.tolist(), int(kernel.n_rechecked)))
    assert found[0] == found[1] == found[2]


# Breaks when an instruction set reports the distances of its own screening.
def test_every_set_reports_the_same_distances_to_many_centroids() -> None:
    rows_BD, c_KD = (points.float() for points in HARD_POINTS["plain"])
    found = [
        CpuKernel(700, 600, torch.float32, CPU, instruction_set=each).assign(
            rows_BD, sq_norms(rows_BD), c_KD
        )
        for each in instruction_sets()
    ]
    for labels_B, sq_distances_B in found[1:]:
        assert torch.equal(labels_B, found[0].labels_B)
        assert torch.equal(sq_distances_B, found[0].sq_distances_B)


# Breaks when a slice of columns, or the columns behind the last vector, is left out.
@pytest.mark.parametrize(
    "d", [1, 3, 4, 5, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 130, 144, 145, 259, 700]
)
def test_sums_of_every_width(make, d) -> None:
    x_BD = torch.arange(500 * d, dtype=torch.float32).reshape(500, d) % 251
    labels_B = torch.arange(500) * 7 % 9
    labels_B[labels_B == 4] = 0
    sums_KD, counts_K = torch.zeros((9, d)).double(), torch.zeros(9, dtype=torch.int64)
    make(500, 9, torch.float32, CPU).accumulate(x_BD, labels_B, sums_KD=sums_KD, counts_K=counts_K)
    expected_KD = torch.zeros((9, d)).double().index_add_(0, labels_B, x_BD.double())
    assert torch.equal(sums_KD, expected_KD)
    assert torch.equal(counts_K, labels_B.bincount(minlength=9))


# Breaks when rows are added one after the other: of equal ones each addition then rounds alike.
@pytest.mark.parametrize("d", [3, 130])
def test_sums_of_many_equal_rows(make, d) -> None:
    row_D = torch.linspace(0.1, 2.3, d)
    sums_KD, counts_K = torch.zeros((1, d)).double(), torch.zeros(1, dtype=torch.int64)
    make(16000, 1, torch.float32, CPU).accumulate(
        row_D.repeat(16000, 1), torch.zeros(16000).long(), sums_KD=sums_KD, counts_K=counts_K
    )
    assert torch.equal(sums_KD[0], 16000 * row_D.double())


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
    sums_KD, counts_K = torch.zeros((4, 3)).double(), torch.zeros(4, dtype=torch.int64)
    for labels, sums in (
        (torch.full((10,), 4), sums_KD),
        (torch.full((10,), -1), sums_KD),
        (torch.zeros(9, dtype=torch.int64), sums_KD),
        (torch.zeros(10, dtype=torch.int32), sums_KD),
        (torch.zeros(10, dtype=torch.int64), torch.zeros((3, 4)).double().T),
        (torch.zeros(10, dtype=torch.int64), sums_KD.float()),
    ):
        with pytest.raises(ValueError, match=r"labels|kernel"):
            kernel.accumulate(x_BD, labels, sums_KD=sums, counts_K=counts_K)
    assert not sums_KD.any()
    assert not counts_K.any()


# Breaks when buffers are made wherever torch makes them by default, and addressed on the CPU.
def test_default_device_of_torch_does_not_matter(make) -> None:
    x_BD, c_KD = normal(50, 3, dtype=torch.float32, device=CPU), torch.eye(3)
    expected = make(50, 3, torch.float32, CPU).assign(x_BD, sq_norms(x_BD), c_KD)
    sums_KD, counts_K = torch.zeros((3, 3)).double(), torch.zeros(3, dtype=torch.int64)
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


# ---- rows that lie in a window, measured in the same pass ---------------------

MOST = 1e30


# Breaks when a position is taken for a number of the batch, when lengths of another tile are taken,
# or when features behind the last line are left out.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("k", [1, 70, 3000])
@pytest.mark.parametrize("d", [1, 9, 16, 17, 130])
@pytest.mark.parametrize("in_order", [False, True])
def test_is_what_gathering_first_gives(make, k, d, dtype, in_order) -> None:
    for b in (1, 12, 13, 192, 193, 500):
        check_rows_where_they_lie(make, b, k, d, dtype, in_order=in_order)


def check_rows_where_they_lie(
    make, b: int, k: int, d: int, dtype: torch.dtype, *, in_order: bool
) -> None:
    window_ND = normal(b if in_order else b + 300, d, dtype=dtype, device=CPU)
    centroids_KD = normal(k, d, dtype=dtype, device=CPU)
    positions_B = None if in_order else permuted(len(window_ND), b)
    rows = slice(None) if positions_B is None else positions_B
    x_BD, norms_B = gather(window_ND, rows, torch.empty((b, d), dtype=dtype))
    kernel = make(b, k, dtype, CPU)
    # Gathering takes the best instruction set, of which the others may differ in the last bit.
    unit = torch.finfo(dtype).eps
    close = partial(torch.testing.assert_close, rtol=4 * unit, atol=4 * unit * float(norms_B.max()))
    labels_B, sq_distances_B = kernel.assign(x_BD, norms_B, centroids_KD)
    take = partial(kernel.assign_in_place, window_ND, positions_B, centroids_KD, most_sq_norm=MOST)
    found = take(exact=False)
    assert torch.equal(found.labels_B, labels_B)
    close(found.sq_distances_B, sq_distances_B)
    close(found.sq_norms_B, norms_B)
    assert found.dropped_B is None
    exact = take(exact=True)
    assert torch.equal(exact.labels_B, labels_B)
    close(exact.sq_distances_B, sq_distances_to(x_BD, labels_B, centroids_KD))
    sums_KD, counts_K = torch.zeros_like(centroids_KD).double(), torch.zeros(k, dtype=torch.int64)
    expected_KD, expected_K = (
        torch.zeros_like(centroids_KD).double(),
        torch.zeros(k, dtype=torch.int64),
    )
    kernel.accumulate(
        window_ND, labels_B, sums_KD=sums_KD, counts_K=counts_K, positions_B=positions_B
    )
    kernel.accumulate(x_BD, labels_B, sums_KD=expected_KD, counts_K=expected_K)
    assert torch.equal(sums_KD, expected_KD)
    assert torch.equal(counts_K, expected_K)


def before_a_wall(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that ends where memory does: to read one byte more ends the process."""
    n_bytes = -(-tensor.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    pages = mmap.mmap(-1, n_bytes + mmap.PAGESIZE)
    wall = ctypes.addressof(ctypes.c_char.from_buffer(pages, n_bytes))
    no_access = 0
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(wall), mmap.PAGESIZE, no_access) == 0
    flat = torch.frombuffer(pages, dtype=tensor.dtype, offset=n_bytes - tensor.nbytes)
    return flat[: tensor.numel()].view(tensor.shape).copy_(tensor)


# Breaks (crashes) when the rows ahead, or the last vector of a row, are taken from beyond the end.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("d", [1, 3, 7, 9, 15, 17, 31, 33, 130, 145])
def test_nothing_is_read_beyond_the_end(make, d, dtype) -> None:
    window_ND, positions_B = normal(60, d, dtype=dtype, device=CPU), permuted(60, 50)
    centroids_KD, sums_KD = normal(5, d, dtype=dtype, device=CPU), torch.zeros(5, d).double()
    kernel, found = make(50, 5, dtype, CPU), []
    for at_the_end in (torch.Tensor.clone, before_a_wall):
        window, positions, centroids, sums = map(
            at_the_end, (window_ND, positions_B, centroids_KD, sums_KD)
        )
        measured = kernel.assign_in_place(
            window, positions, centroids, most_sq_norm=MOST, exact=True
        )
        labels, counts = at_the_end(measured.labels_B), at_the_end(torch.zeros(5).long())
        kernel.accumulate(window, labels, sums_KD=sums, counts_K=counts, positions_B=positions)
        found.append((*measured[:3], sums, counts))
    assert all(map(torch.equal, *found))


# Breaks when a row that is dropped keeps its length or its numbers: what it leaves is NaN.
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 1e16])
@pytest.mark.parametrize("d", [8, 20])
def test_rows_without_a_length_count_as_zeros(make, d: int, bad: float) -> None:
    window_ND = normal(400, d, dtype=torch.float32, device=CPU)
    centroids_KD = normal(40, d, dtype=torch.float32, device=CPU)
    positions_B = permuted(400, 300)
    places = [0, 11, 12, 191, 192, 299]
    window_ND[positions_B[places].long(), 7] = bad
    kernel = make(300, 40, torch.float32, CPU)
    for exact in (False, True):
        found = kernel.assign_in_place(
            window_ND, positions_B, centroids_KD, most_sq_norm=MOST, exact=exact
        )
        assert found.dropped_B is not None
        assert found.dropped_B.nonzero().squeeze(1).tolist() == places
        assert found.sq_norms_B[places].tolist() == [0] * len(places)
        lengths_K = centroids_KD.double().square().sum(dim=1)
        assert found.labels_B[places].tolist() == [int(lengths_K.argmin())] * len(places)
        assert found.sq_distances_B.isfinite().all()
    assert not window_ND[positions_B[places].long(), 7].eq(0).any()


def test_only_the_compiled_kernel_takes_rows_where_they_lie() -> None:
    assert ReferenceKernel(5, 2, torch.float32, CPU).in_place is None
    kernel = CpuKernel(5, 2, torch.float32, CPU)
    assert kernel.in_place is kernel


# Breaks when positions are passed on unchecked: the extension would read beyond the window.
def test_refuses_positions_outside_the_window(make) -> None:
    kernel = make(10, 4, torch.float32, CPU)
    window_ND, centroids_KD = torch.zeros((20, 3)), torch.zeros((4, 3))
    sums_KD, counts_K = torch.zeros((4, 3)).double(), torch.zeros(4, dtype=torch.int64)
    labels_B = torch.zeros(2, dtype=torch.int64)
    for positions in ([0, 20], [-1, 0]):
        positions_B = torch.tensor(positions, dtype=torch.int32)
        with pytest.raises(IndexError, match="within a window of 20"):
            kernel.assign_in_place(
                window_ND, positions_B, centroids_KD, most_sq_norm=MOST, exact=False
            )
        with pytest.raises(IndexError, match="within a window of 20"):
            kernel.accumulate(
                window_ND, labels_B, sums_KD=sums_KD, counts_K=counts_K, positions_B=positions_B
            )
    for positions_B in (torch.zeros(2, dtype=torch.int64), torch.zeros(4, dtype=torch.int32)[::2]):
        with pytest.raises(ValueError, match="positions must be int32"):
            kernel.assign_in_place(
                window_ND, positions_B, centroids_KD, most_sq_norm=MOST, exact=False
            )
    with pytest.raises(ValueError, match="at most 10 rows"):
        kernel.assign_in_place(window_ND, None, centroids_KD, most_sq_norm=MOST, exact=False)
    with pytest.raises(ValueError, match="not 0"):
        kernel.assign_in_place(window_ND[:2], None, centroids_KD[:0], most_sq_norm=MOST, exact=True)
    assert not sums_KD.any()
