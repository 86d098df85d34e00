"""The several nearest centroids, ranked as float64 NumPy ranks all of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from streamkm.kernels import KernelRequest, make_kernel, rank_nearest
from streamkm.kernels.ops import ranking
from tests.kernels.contract import DTYPES, exact_sq_distances, normal, sq_norms

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=NO_GPU)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


def by_numpy(x_BD: torch.Tensor, c_KD: torch.Tensor, m: int) -> tuple[np.ndarray, np.ndarray]:
    exact_BK = exact_sq_distances(x_BD, c_KD)
    order_BM = exact_BK.argsort(axis=1, kind="stable")[:, :m]
    return order_BM, np.take_along_axis(exact_BK, order_BM, axis=1)


# Breaks when a candidate is missed, or a tile is ranked against other rows.
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("b", "k", "d", "m"), [(1, 1, 1, 1), (257, 3, 1, 2), (300, 40, 17, 40), (400, 1000, 96, 7)]
)
def test_ranks_are_float64_s(device, monkeypatch, b, k, d, m, dtype) -> None:
    monkeypatch.setattr(ranking, "TILE_SCORES", {"cpu": 1, "cuda": 1})
    monkeypatch.setattr(ranking, "PAIRS", {"cpu": 100, "cuda": 100})
    x_BD = normal(b, d, dtype=dtype, device=device)
    c_KD = normal(k, d, dtype=dtype, device=device)
    labels_BM, sq_distances_BM = rank_nearest(x_BD, sq_norms(x_BD), c_KD, m)
    order_BM, exact_BM = by_numpy(x_BD, c_KD, m)
    assert labels_BM.tolist() == order_BM.tolist()
    assert sq_distances_BM.dtype == torch.float64
    np.testing.assert_allclose(sq_distances_BM.cpu().numpy(), exact_BM, rtol=1e-13)


# Breaks when the order is that of float32: all centroids are 1 away to its rounding.
def test_distances_that_float32_cannot_tell_apart(device) -> None:
    x_BD = torch.zeros((2, 2), device=device)
    steps_K = torch.tensor([3.0, 1, 4, 0, 2], device=device) * 2.0**-24
    c_KD = torch.stack((torch.ones_like(steps_K), steps_K), dim=1)
    labels_BM, _ = rank_nearest(x_BD, sq_norms(x_BD), c_KD, 4)
    assert labels_BM.tolist() == [[3, 1, 4, 0]] * 2


# Breaks when rows far from the origin lose the digits that tell centroids apart.
def test_rows_far_from_the_origin(device) -> None:
    x_BD = normal(200, 5, dtype=torch.float32, device=device) + 3000
    c_KD = normal(60, 5, dtype=torch.float32, device=device) + 3000
    labels_BM, sq_distances_BM = rank_nearest(x_BD, sq_norms(x_BD), c_KD, 9)
    order_BM, exact_BM = by_numpy(x_BD, c_KD, 9)
    assert labels_BM.tolist() == order_BM.tolist()
    np.testing.assert_allclose(sq_distances_BM.cpu().numpy(), exact_BM, rtol=1e-13)


# Breaks when a sort mixes equal distances: centroids come in pairs, and rows lie on a lattice.
def test_equal_distances_go_by_the_lower_index(device) -> None:
    corners_KD = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3).to(device)
    c_KD = torch.cat((corners_KD, corners_KD))
    x_BD = torch.cat((torch.zeros(1, 3, device=device), corners_KD))
    labels_BM, sq_distances_BM = rank_nearest(x_BD, sq_norms(x_BD), c_KD, 16)
    order_BM, exact_BM = by_numpy(x_BD, c_KD, 16)
    assert labels_BM[0].tolist() == list(range(16))
    assert labels_BM.tolist() == order_BM.tolist()
    assert sq_distances_BM.tolist() == exact_BM.tolist()


# Breaks when the first of several is another than the one that predict gives alone.
@pytest.mark.parametrize("kernel", ["auto", "reference"])
def test_the_first_is_the_label_of_the_kernel(device, kernel: str) -> None:
    x_BD = normal(3000, 4, dtype=torch.float32, device=device).round(decimals=1)
    c_KD = x_BD[::100].clone()
    request = KernelRequest(3000, 30, torch.float32, device)
    alone = make_kernel(kernel, request).assign(x_BD, sq_norms(x_BD), c_KD)
    labels_BM, _ = rank_nearest(x_BD, sq_norms(x_BD), c_KD, 3)
    assert torch.equal(labels_BM[:, 0], alone.labels_B)


# Breaks when scores that overflow leave a row without candidates.
def test_a_centroid_whose_score_overflows_is_last(device) -> None:
    c_KD = torch.tensor([[3e38], [1.0], [2.0]], device=device)
    x_BD = torch.tensor([[1.4], [1e19]], device=device)
    labels_BM, _ = rank_nearest(x_BD, sq_norms(x_BD), c_KD, 3)
    assert labels_BM.tolist() == [[1, 2, 0]] * 2


# Breaks when a program that allows tf32 gets candidates that were screened in it.
def test_ranks_do_not_depend_on_the_precision_that_a_program_allows(device) -> None:
    x_BD = normal(500, 64, dtype=torch.float32, device=device)
    c_KD = normal(300, 64, dtype=torch.float32, device=device)
    torch.set_float32_matmul_precision("medium")
    try:
        labels_BM, _ = rank_nearest(x_BD, sq_norms(x_BD), c_KD, 5)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert labels_BM.tolist() == by_numpy(x_BD, c_KD, 5)[0].tolist()
