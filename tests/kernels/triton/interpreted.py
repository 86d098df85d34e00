"""The Triton kernels, by Triton's interpreter; run by test_kernel.py in a process of its own.

The interpreter is chosen when triton is imported, and is slow: where the contract's
shapes would take minutes, smaller ones of the same kinds stand in for them. On a
GPU (``pytest -m gpu``) the whole contract runs.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)

from streamkm.clustering.batch import Batch
from streamkm.clustering.lloyd import Lloyd
from streamkm.clustering.minibatch import MiniBatch
from streamkm.clustering.preparation import Preparation
from streamkm.clustering.scaling import Scaling
from streamkm.clustering.state import initial_state
from streamkm.errors import InputError
from streamkm.kernels import Rows
from streamkm.kernels.triton.kernel import N_LISTED, TritonKernel
from streamkm.kernels.triton.tiles import Tile, fits_lanes, fits_one_read
from tests.kernels.contract import (
    DTYPES,
    KernelContract,
    MakeKernel,
    exact_sq_distances,
    normal,
    sq_norms,
)

# NumPy, which the interpreter computes with, warns of overflow and NaN; a GPU does not.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

CPU = torch.device("cpu")
SMALL_SHAPES = [(1, 1, 1), (2, 3, 1), (7, 1, 3), (130, 5, 17), (140, 33, 257)]


class TestInterpreted(KernelContract):
    many_features, flat_rows, many_rows = 64, 12, 50  # all of them take minutes

    @pytest.fixture
    def make(self) -> MakeKernel:
        return TritonKernel

    @pytest.mark.parametrize(
        ("b", "k", "d", "dtype"),
        [(*shape, dtype) for shape in SMALL_SHAPES for dtype in DTYPES]
        + [(3, 2100, 17, torch.float32)],
        ids=str,
    )
    def test_labels_and_distances_are_float64_s(self, make, device, b, k, d, dtype) -> None:
        super().test_labels_and_distances_are_float64_s(make, device, b, k, d, dtype)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_distances_are_never_negative(self, make, device, dtype) -> None:
        c_KD = normal(12, 31, dtype=dtype, device=device) + 30
        labels_B, distances_B = self.assign(make, c_KD, c_KD)
        assert distances_B.tolist() == [0.0] * 12
        assert torch.equal(labels_B, torch.arange(12))

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize(("b", "k", "d"), [(30, 5, 17), (10, 2, 1), (20, 129, 3)])
    def test_equal_centroids_tie_to_the_lowest_index(self, make, device, b, k, d, dtype) -> None:
        super().test_equal_centroids_tie_to_the_lowest_index(make, device, b, k, d, dtype)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize(("b", "k", "d"), [(1, 1, 1), (130, 5, 17), (65, 2, 140), (90, 99, 3)])
    def test_sums_of_integers_are_exact(self, make, device, b, k, d, dtype) -> None:
        super().test_sums_of_integers_are_exact(make, device, b, k, d, dtype)

    # A cluster of several chunks, one that ends with a chunk, one that begins with one.
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_sums_are_float64_s_to_rounding(self, make, device, dtype) -> None:
        x_BD = normal(330, 5, dtype=dtype, device=device)
        labels_B = torch.tensor([4] * 20 + [2] * 150 + [0] * 32 + [1] * 64 + [3] * 64)
        sums_KD, counts_K = self.sums(make, x_BD, labels_B, 5)
        exact = torch.zeros((5, 5), dtype=torch.float64).index_add_(0, labels_B, x_BD.double())
        tolerance = 40 * torch.finfo(dtype).eps
        torch.testing.assert_close(sums_KD.double(), exact, rtol=tolerance, atol=20 * tolerance)
        assert counts_K.tolist() == [32, 64, 150, 64, 20]

    # In both, rows may be in doubt.
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize(("b", "k", "d"), [(20, 1, 3), (20, 2, 1), (20, 5, 17), (30, 150, 3)])
    def test_distances_to_the_two_nearest(self, make, device, b, k, d, dtype) -> None:
        super().test_distances_to_the_two_nearest(make, device, b, k, d, dtype)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize(("b", "k", "d"), [(12, 3, 64)])
    def test_same_bits_again_and_with_other_threads(self, make, device, b, k, d, dtype) -> None:
        super().test_same_bits_again_and_with_other_threads(make, device, b, k, d, dtype)


def labels_and_truth(x_BD, c_KD, **options) -> tuple[list[int], list[int], TritonKernel]:
    kernel = TritonKernel(len(x_BD), len(c_KD), c_KD.dtype, CPU, **options)
    labels_B, sq_distances_B = kernel.assign(x_BD, sq_norms(x_BD), c_KD)
    exact_BK = exact_sq_distances(x_BD, c_KD)
    truth = exact_BK.argmin(axis=1)
    least_B = exact_BK[np.arange(len(truth)), truth]
    found_B = sq_distances_B.double().numpy()
    if options.get("precision") != "fast":
        np.testing.assert_allclose(found_B, least_B, rtol=1e-5, atol=1e-37)
    return labels_B.tolist(), truth.tolist(), kernel


# Breaks when a split of the features, or of a tile of scores, mixes up rows or centroids.
@pytest.mark.parametrize(
    ("shape", "tile"),
    [
        ((5, 20, 520), None),
        ((20, 70, 300), Tile(rows=16, centroids=64, fold=1)),
        ((70, 300, 40), Tile(rows=64, centroids=128, fold=4)),
        ((40, 100, 33), Tile(rows=32, centroids=32, fold=2)),
    ],
    ids=str,
)
def test_other_tiles(shape: tuple[int, int, int], tile: Tile | None) -> None:
    b, k, d = shape
    x_BD = normal(b, d, dtype=torch.float32, device=CPU)
    c_KD = normal(k, d, dtype=torch.float32, device=CPU)
    labels, truth, _ = labels_and_truth(x_BD, c_KD, tile=tile)
    assert labels == truth


# Breaks when rows are read in another dtype than they are stored in.
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("d", [12, 40], ids=["on the chip", "rounded first"])
def test_rows_as_they_are_stored(rng, dtype: torch.dtype, d: int) -> None:
    least = 0 if dtype == torch.uint8 else -100
    x_BD = torch.from_numpy(rng.integers(least, 100, (40, d))).to(dtype)
    c_KD = torch.from_numpy(rng.integers(least, 100, (30, d)) + rng.normal(size=(30, d))).float()
    labels, truth, kernel = labels_and_truth(x_BD, c_KD)
    assert labels == truth
    labels_B, *found = kernel.assign_two(x_BD, torch.empty(0), c_KD)
    assert labels_B.tolist() == truth
    exact_BK = np.sort(exact_sq_distances(x_BD, c_KD), axis=1)
    np.testing.assert_allclose(torch.stack(found, dim=1), exact_BK[:, :2], rtol=1e-5)


# Breaks when float16 overflows or loses what is small: scales differ by row and by centroid.
@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e5, 1e15])
@pytest.mark.parametrize("other", [1.0, 1e-4, 1e3])
def test_huge_and_tiny_norms(scale: float, other: float) -> None:
    x_BD = normal(40, 7, dtype=torch.float32, device=CPU) * scale
    x_BD[::3] *= other
    c_KD = normal(33, 7, dtype=torch.float32, device=CPU) * scale
    c_KD[5] *= 1e6
    labels, truth, _ = labels_and_truth(x_BD.float(), c_KD.float())
    assert labels == truth


# Breaks when the bound is no bound: centroids closer than float16, and than float32's squares.
@pytest.mark.parametrize("spread", [1e-2, 1e-3, 1e-4, 1e-6])
def test_centroids_that_screening_cannot_tell(rng, spread: float) -> None:
    c_KD = torch.from_numpy(1 + spread * rng.normal(size=(40, 6))).float()
    x_BD = torch.from_numpy(1 + spread * rng.normal(size=(6, 6))).float()
    labels, truth, kernel = labels_and_truth(x_BD, c_KD)
    assert labels == truth
    assert int(kernel.n_rechecked) > 0


# Breaks when a list that overflows loses a centroid, or a position its third one.
@pytest.mark.parametrize(
    ("n_copies", "apart"),
    [(2, 1), (3, 32), (N_LISTED, 1), (N_LISTED, 32), (N_LISTED + 1, 1), (N_LISTED + 1, 32),
     (90, 1), (20, 32)],
)  # fmt: skip
def test_more_equal_centroids_than_a_list_holds(rng, n_copies: int, apart: int) -> None:
    c_KD = torch.from_numpy(rng.normal(size=(3 + n_copies * apart, 4))).float()
    c_KD[3 : 3 + n_copies * apart : apart] = c_KD[3]
    x_BD = c_KD[3] + 0.01 * torch.from_numpy(rng.normal(size=(6, 4))).float()
    labels, truth, _ = labels_and_truth(x_BD, c_KD)
    assert labels == truth


# Breaks when one centroid far away makes every row uncertain.
def test_one_far_centroid_leaves_the_others_rows_certain() -> None:
    x_BD = normal(300, 16, dtype=torch.float32, device=CPU)
    c_KD = normal(50, 16, dtype=torch.float32, device=CPU)
    c_KD[7] *= 1e4
    labels, truth, kernel = labels_and_truth(x_BD, c_KD)
    assert labels == truth
    assert int(kernel.n_rechecked) < 60


# Breaks when the screening's own mistakes are hidden by settling every row.
def test_few_rows_are_settled_and_fast_settles_none() -> None:
    x_BD = torch.nn.functional.normalize(normal(400, 64, dtype=torch.float32, device=CPU))
    c_KD = torch.nn.functional.normalize(normal(200, 64, dtype=torch.float32, device=CPU))
    labels, truth, exact = labels_and_truth(x_BD, c_KD)
    screened, _, fast = labels_and_truth(x_BD, c_KD, precision="fast")
    assert labels == truth
    assert 0 < int(exact.n_rechecked) < 40
    assert int(fast.n_rechecked) == 0
    assert np.mean(np.array(screened) == truth) > 0.98


# Breaks when a tile decides more than speed: labels, distances, or an order of sums. A run that
# goes on where another tile is the fastest ends with the same bits.
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_state_is_the_same_whatever_the_tiles(dtype: torch.dtype) -> None:
    x_BD, c_KD = (normal(n, 130, dtype=dtype, device=CPU) for n in (20, 90))
    c_KD[40] = c_KD[3]
    assert not fits_one_read(90, 130, dtype)
    before, after = Tile(rows=16, centroids=32, fold=1), Tile(rows=64, centroids=64, fold=4)
    states = []
    for tiles in ((before, after), (after, before), (None, None)):
        state = initial_state(c_KD.clone(), 0.0)
        for index, tile in enumerate(tiles):
            kernel = TritonKernel(20, 90, dtype, CPU, tile=tile)
            batch = Batch(x_BD, sq_norms(x_BD), None)
            MiniBatch(kernel, 100, seed=1).update_(state, batch, epoch=0, index=index)
        states.append(state.tensors())
    for other in states[1:]:
        for name, tensor in states[0].items():
            assert torch.equal(tensor.nan_to_num(), other[name].nan_to_num()), name


# Breaks when tuning tries no tile, tries them again, or what it found is not what assigns.
def test_the_first_batch_decides_about_the_tile(monkeypatch, tmp_path) -> None:
    x_BD, c_KD = (normal(n, 16, dtype=torch.float32, device=CPU) for n in (10, 40))
    among = (Tile(rows=16, centroids=32, fold=1), Tile(rows=16, centroids=32))
    tried: list[int] = []

    def seconds_of(action) -> float:
        action()
        tried.append(len(tried))
        return -float(len(tried))

    monkeypatch.setattr("streamkm.kernels.triton.kernel.key_of", lambda *about: "key.json")
    monkeypatch.setattr("streamkm.kernels.triton.kernel.seconds_of", seconds_of)
    monkeypatch.setattr("streamkm.kernels.triton.kernel.tiles", lambda *about: among)
    monkeypatch.setattr("streamkm.kernels.triton.kernel.cache_folder", lambda: tmp_path)
    for _ in range(2):
        kernel = TritonKernel(10, 40, torch.float32, CPU, tune=True)
        assert not kernel._tunes  # on the CPU there is nothing to gain
        kernel._tunes = True
        kernel.assign(x_BD, sq_norms(x_BD), c_KD)
        labels_B, _ = kernel.assign(x_BD, sq_norms(x_BD), c_KD)
        assert kernel._tile == among[1]
        assert labels_B.tolist() == exact_sq_distances(x_BD, c_KD).argmin(axis=1).tolist()
    assert tried == [0, 1]


# Breaks when stored rows are split in terms that they do not fit, or read in another dtype.
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("d", [3, 12], ids=["in lanes", "in tiles"])
def test_a_step_on_rows_as_they_are_stored(rng, dtype: torch.dtype, d: int) -> None:
    assert fits_lanes(9, d) == (d == 3)
    x_BD = torch.from_numpy(rng.integers(0, 120, (70, d))).to(dtype)
    c_KD = x_BD[:9].float() + 0.25
    sums_KD, counts_K = torch.zeros(10, d, dtype=torch.float64), torch.zeros(10, dtype=torch.int64)
    kernel = TritonKernel(70, 9, torch.float32, CPU)
    rows = Rows(x_BD, sq_norms(x_BD.float()))
    labels_B, _ = kernel.step(rows, c_KD, sums_KD=sums_KD, counts_K=counts_K)
    truth_B = torch.from_numpy(exact_sq_distances(x_BD, c_KD).argmin(axis=1))
    assert torch.equal(labels_B, truth_B)
    expected_KD = torch.zeros(9, d).double().index_add_(0, truth_B, x_BD.double())
    assert torch.equal(sums_KD[:9], expected_KD)
    assert torch.equal(counts_K[:9], truth_B.bincount(minlength=9))


# Breaks when the rows of a cluster in a tile, or the tiles of a span, are not added up in turn,
# and when a step's distances are not those of `assign`, to the bit.
@pytest.mark.parametrize(
    ("b", "k", "d"),
    [(130, 33, 70), (130, 3, 20), (530, 16, 3), (600, 3, 16), (300, 5, 7), (270, 41, 1)],
)
def test_a_step_of_several_tiles_and_spans(monkeypatch, b: int, k: int, d: int) -> None:
    monkeypatch.setattr("streamkm.kernels.triton.kernel.MAX_SPANS", 2)
    assert fits_one_read(k, d, torch.float32)
    x_BD = normal(b, d, dtype=torch.float32, device=CPU)
    c_KD = normal(k, d, dtype=torch.float32, device=CPU)
    # A few rows in doubt, whose lowest centroid is the one that counts.
    c_KD[0] += 5
    c_KD[k - 1] = c_KD[0]
    x_BD[::50] = c_KD[0] + 0.01
    left_out_B = torch.arange(b) % 5 == 2
    shares_B = torch.from_numpy(np.random.default_rng(b).uniform(0.5, 2, b))
    truth_B = torch.from_numpy(exact_sq_distances(x_BD, c_KD).argmin(axis=1))
    kernel = TritonKernel(b, k, torch.float32, CPU)
    rows = Rows(x_BD, sq_norms(x_BD), shares_B=shares_B, left_out_B=left_out_B)
    sums_KD, counts_K = (
        torch.zeros(k + 1, d, dtype=torch.float64),
        torch.zeros(k + 1, dtype=torch.int64),
    )
    found = kernel.step(rows, c_KD, sums_KD=sums_KD, counts_K=counts_K)
    # Not all of their tile.
    assert len(x_BD[::50]) <= int(kernel.n_rechecked) <= b // 4
    assigned = kernel.assign(x_BD, sq_norms(x_BD), c_KD)
    assert torch.equal(found.labels_B, truth_B)
    assert torch.equal(found.sq_distances_B, assigned.sq_distances_B)
    kept_B = ~left_out_B
    assert torch.equal(counts_K[:k], truth_B[kept_B].bincount(minlength=k))
    weighted_BD = x_BD.double() * shares_B.double()[:, None]
    exact_KD = torch.zeros((k, d), dtype=torch.float64)
    exact_KD.index_add_(0, truth_B[kept_B], weighted_BD[kept_B])
    torch.testing.assert_close(sums_KD[:k].double(), exact_KD, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("d", [5, 20], ids=["in lanes", "in tiles"])
def test_a_fast_step_settles_no_row(d: int) -> None:
    x_BD = normal(60, d, dtype=torch.float32, device=CPU)
    kernel = TritonKernel(60, 4, torch.float32, CPU, "fast")
    sums_KD, counts_K = torch.zeros(5, d, dtype=torch.float64), torch.zeros(5, dtype=torch.int64)
    rows = Rows(x_BD, sq_norms(x_BD))
    labels_B, _ = kernel.step(rows, x_BD[:4].clone(), sums_KD=sums_KD, counts_K=counts_K)
    assert int(kernel.n_rechecked) == 0
    assert torch.equal(counts_K[:4], labels_B.bincount(minlength=4))


# Breaks when a row out of float16's reach is certain, or one that was left out is added.
@pytest.mark.parametrize("d", [4, 20], ids=["in lanes", "in tiles"])
def test_a_step_on_rows_far_out_or_not_finite(d: int) -> None:
    assert fits_lanes(9, d) == (d == 4)
    x_BD = normal(70, d, dtype=torch.float32, device=CPU)
    c_KD = normal(9, d, dtype=torch.float32, device=CPU)
    x_BD[5] *= 1e6
    x_BD[6] *= 1e-12
    truth_B = torch.from_numpy(exact_sq_distances(x_BD, c_KD).argmin(axis=1))
    sizes_K = truth_B.bincount(minlength=9)
    sizes_K[truth_B[[3, 4]]] -= 1 + (truth_B[3] == truth_B[4]).long()
    x_BD[3, 1], x_BD[4, 0] = torch.nan, torch.inf
    left_out_B = ~x_BD.isfinite().all(dim=1)
    sums_KD, counts_K = torch.zeros(10, d, dtype=torch.float64), torch.zeros(10, dtype=torch.int64)
    kernel = TritonKernel(70, 9, torch.float32, CPU)
    rows = Rows(x_BD, sq_norms(x_BD), left_out_B=left_out_B)
    labels_B, sq_distances_B = kernel.step(rows, c_KD, sums_KD=sums_KD, counts_K=counts_K)
    assert torch.equal(labels_B[~left_out_B], truth_B[~left_out_B])
    assert ((labels_B >= 0) & (labels_B < 9)).all()
    assert not sq_distances_B[left_out_B].isfinite().any()
    assert sums_KD[:9].isfinite().all()
    assert torch.equal(counts_K[:9], sizes_K)
    # A centroid that is nowhere is nobody's, and hides no other.
    c_KD[4] = torch.nan
    labels_B, _ = kernel.step(rows, c_KD, sums_KD=sums_KD, counts_K=counts_K)
    others_BK = exact_sq_distances(x_BD[~left_out_B], c_KD)
    assert labels_B[~left_out_B].tolist() == np.nanargmin(others_BK, axis=1).tolist()


# Breaks when NaN becomes an index, spreads to other rows, or hides the finite centroids.
def test_rows_and_centroids_that_are_not_finite() -> None:
    x_BD = normal(20, 4, dtype=torch.float32, device=CPU)
    c_KD = normal(9, 4, dtype=torch.float32, device=CPU)
    truth_B = torch.from_numpy(exact_sq_distances(x_BD, c_KD).argmin(axis=1))
    x_BD[3, 1], x_BD[5, 0] = torch.nan, torch.inf
    kernel = TritonKernel(20, 9, torch.float32, CPU)
    labels_B, sq_distances_B = kernel.assign(x_BD, sq_norms(x_BD), c_KD)
    kept_B = x_BD.isfinite().all(dim=1)
    assert torch.equal(labels_B[kept_B], truth_B[kept_B])
    assert ((labels_B >= 0) & (labels_B < 9)).all()
    assert not sq_distances_B[~kept_B].isfinite().any()
    c_KD[4] = torch.nan
    labels_B, _ = kernel.assign(x_BD, sq_norms(x_BD), c_KD)
    others_BK = exact_sq_distances(x_BD[kept_B], c_KD)
    assert labels_B[kept_B].tolist() == np.nanargmin(others_BK, axis=1).tolist()


# Breaks when an address is worked out in 32 bits. (Of this memory no more is touched than is used.)
@pytest.mark.parametrize(
    ("k", "d"), [(3, 16), (3, 17), (300, 17)], ids=["in lanes", "one read", "two"]
)
def test_more_than_two_to_the_31_elements(k: int, d: int) -> None:
    stride = 2**30 + 16
    x_BD = torch.empty(2 * stride + d, dtype=torch.uint8).as_strided((3, d), (stride, 1))
    for row, level in enumerate((10, 110, 210)):
        x_BD[row] = level
    c_KD = (1000 + torch.arange(k)).float()[:, None].expand(k, d).contiguous()
    c_KD[:3] = torch.tensor([[110.0], [210.0], [11.0]])
    kernel = TritonKernel(3, k, torch.float32, CPU)
    labels_B, sq_distances_B = kernel.assign(x_BD, torch.empty(0), c_KD)
    assert labels_B.tolist() == [2, 0, 1]
    assert sq_distances_B.tolist() == [d, 0, 0]
    sums_KD, counts_K = (
        torch.zeros(k + 1, d, dtype=torch.float64),
        torch.zeros(k + 1, dtype=torch.int64),
    )
    rows = Rows(x_BD, torch.empty(0))
    found = kernel.step(rows, c_KD, sums_KD=sums_KD, counts_K=counts_K)
    assert found.labels_B.tolist() == [2, 0, 1]
    assert counts_K[:4].tolist() == [1, 1, 1, 0]
    assert sums_KD[:3, d - 1].tolist() == [110, 210, 10]


def test_no_rows_and_rows_that_are_not_contiguous() -> None:
    x_BD = normal(6, 40, dtype=torch.float32, device=CPU).T
    c_KD = normal(12, 5, dtype=torch.float32, device=CPU).T[:, ::2]
    kernel = TritonKernel(40, 5, torch.float32, CPU)
    labels_B, _ = kernel.assign(x_BD, sq_norms(x_BD), c_KD)
    assert labels_B.tolist() == exact_sq_distances(x_BD, c_KD).argmin(axis=1).tolist()
    labels_B, sq_distances_B = kernel.assign(x_BD[:0], sq_norms(x_BD[:0]), c_KD)
    assert labels_B.shape == sq_distances_B.shape == (0,)
    sums_KD, counts_K = torch.zeros(5, 6, dtype=torch.float64), torch.zeros(5, dtype=torch.int64)
    kernel.accumulate(x_BD[:0], labels_B, sums_KD=sums_KD, counts_K=counts_K)
    kernel.step(Rows(x_BD[:0], sq_norms(x_BD[:0])), c_KD, sums_KD=sums_KD, counts_K=counts_K)
    assert not counts_K.any()
    kernel.step(Rows(x_BD, sq_norms(x_BD)), c_KD, sums_KD=sums_KD, counts_K=counts_K)
    assert int(counts_K.sum()) == 40


@pytest.mark.parametrize(
    ("x_BD", "c_KD", "message"),
    [
        (torch.zeros(3, 4), torch.zeros(2, 5), "centroids must be 2 x 4 at most"),
        (torch.zeros(3, 4), torch.zeros(3, 4), "centroids must be 2 x 4 at most"),
        (torch.zeros(3, 4), torch.zeros(2, 4).double(), "torch.float32, for these rows"),
        (torch.zeros(3, 4).double(), torch.zeros(2, 4), "not torch.float64"),
        (torch.zeros(9, 4), torch.zeros(2, 4), "at most the 8 rows"),
    ],
)
def test_tensors_that_do_not_fit_together(x_BD, c_KD, message: str) -> None:
    kernel = TritonKernel(8, 2, torch.float32, CPU)
    with pytest.raises(InputError, match=message):
        kernel.assign(x_BD, sq_norms(x_BD), c_KD)
    sums_KD, counts_K = torch.zeros(3, 4, dtype=torch.float64), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(InputError, match=message):
        kernel.step(Rows(x_BD, sq_norms(x_BD)), c_KD, sums_KD=sums_KD, counts_K=counts_K)


@pytest.mark.parametrize(("b", "k"), [(8, 0), (8, 2**30), (0, 3), (2**31, 3)])
def test_sizes_that_are_out_of_range(b: int, k: int) -> None:
    with pytest.raises(InputError, match="kernel triton takes"):
        TritonKernel(b, k, torch.float32, CPU)


def test_centroids_of_another_dtype() -> None:
    with pytest.raises(InputError, match="takes float32 or float64 centroids"):
        TritonKernel(8, 3, torch.float16, CPU)


# Breaks when a pass reads the rows again for distances that the kernel gave with the labels.
@pytest.mark.parametrize("k", [5, 50, 260], ids=["in lanes", "one read", "two"])
def test_inertia_without_a_second_read(monkeypatch, k: int) -> None:
    # So far from the origin that nothing is left of the expanded square.
    x_BD = normal(8, 3, dtype=torch.float32, device=CPU) + 3000
    c_KD = (normal(k, 3, dtype=torch.float32, device=CPU) + 3000).contiguous()
    monkeypatch.delattr("streamkm.kernels.ops.distances.sq_distances_to")
    kernel = TritonKernel(8, k, torch.float32, CPU)
    state = initial_state(c_KD.clone(), 0.0)
    Lloyd(kernel, seed=1).update_(state, Batch(x_BD, sq_norms(x_BD), None), epoch=0, index=0)
    truth = exact_sq_distances(x_BD, c_KD).min(axis=1).sum()
    assert float(state.inertia) == pytest.approx(truth, rel=1e-6)


# Breaks when a run's rows are widened before the kernel, or what a step takes of them is not.
@pytest.mark.parametrize("d", [5, 20], ids=["in lanes", "in tiles"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16], ids=str)
@pytest.mark.parametrize("rows", [slice(3, 60), torch.arange(60).flip(0)], ids=["slice", "index"])
def test_a_run_takes_rows_as_they_are_stored(rng, dtype: torch.dtype, rows, d: int) -> None:
    stored_ND = torch.from_numpy(rng.integers(0, 200, (64, d))).to(dtype)
    if dtype == torch.float16:
        stored_ND[20, 2] = torch.nan
        stored_ND[21] = 60_000  # whose square is no float16
    scaling = Scaling(torch.zeros(d).double(), torch.ones(d).double(), normalize=False)
    c_KD = stored_ND[4:10].float()
    kernel = TritonKernel(64, 6, torch.float32, CPU)
    states = []
    for taken in ((), kernel.stored_dtypes):
        workspace_BD = torch.empty((64, d), dtype=dtype if taken else torch.float32)
        batch = Preparation(scaling, workspace_BD)(stored_ND.clone(), rows)
        assert batch.x_BD.dtype == (dtype if taken else torch.float32)
        state = initial_state(c_KD.clone(), 0.0)
        MiniBatch(kernel, 100, seed=1).update_(state, batch, epoch=0, index=0)
        Lloyd(kernel, seed=1).update_(state, batch, epoch=0, index=1)
        states.append(state.tensors())
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], rtol=1e-6, atol=0, equal_nan=True)


# Breaks when a crowded row is narrowed by a bound that is none, or left for the scan of all
# centroids: a third of the centroids are one text with a word changed, and a few of these the
# same to the bit.
@pytest.mark.parametrize(
    ("k", "apart", "dtype"),
    [(270, 3e-4, torch.float32), (120, 1e-9, torch.float64)],
    ids=["near", "nearer"],
)
def test_many_nearly_equal_centroids(rng, k, apart, dtype) -> None:
    base_D = rng.normal(size=20)
    c_KD = torch.from_numpy(rng.normal(size=(k, 20))).to(dtype)
    c_KD[::3] = torch.from_numpy(base_D + apart * rng.normal(size=(k // 3, 20))).to(dtype)
    c_KD[k - 15 :: 3] = c_KD[:15:3]
    x_BD = torch.cat((c_KD[:24:3], c_KD[60:90:3] * (1 + 0.1 * apart)))
    labels, truth, kernel = labels_and_truth(x_BD, c_KD)
    assert labels == truth
    # All in the crowd, and each left with the nearest of a part of the centroids or two.
    assert kernel._about[3:].tolist() == [18, 18]
    n_listed_B = kernel._queue[:18, 1]
    assert ((n_listed_B >= 1) & (n_listed_B <= 2)).all()
