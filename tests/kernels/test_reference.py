"""The kernel in plain torch, and distances as sums of squares."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamkm.kernels import ReferenceKernel, sq_distances_to
from streamkm.kernels.reference import MIN_TILE_ROWS, TILE_BYTES
from tests.kernels.contract import (
    KernelContract,
    MakeKernel,
    error_bound,
    exact_sq_distances,
    normal,
    sq_norms,
)

CPU = torch.device("cpu")


class TestReference(KernelContract):
    @pytest.fixture
    def make(self) -> MakeKernel:
        return ReferenceKernel


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
class TestReferenceOnCuda(KernelContract):
    @pytest.fixture
    def make(self) -> MakeKernel:
        return ReferenceKernel

    @pytest.fixture
    def device(self) -> torch.device:
        return torch.device("cuda")


# Breaks when a tile's labels land on another's rows, at any number of tiles and remainder.
@given(st.integers(1, 900), st.integers(1, 40), st.integers(1, 20), st.integers(0, 2**32))
def test_any_shape_and_any_tile(b: int, k: int, d: int, seed: int) -> None:
    draws = np.random.default_rng(seed)
    x_BD = torch.from_numpy(draws.normal(size=(b, d))).float()
    c_KD = torch.from_numpy(draws.normal(size=(k, d))).float()
    kernel = ReferenceKernel(b, k, torch.float32, CPU)
    kernel._scores = kernel._scores[: 1 + seed % len(kernel._scores)]
    labels_B, distances_B = kernel.assign(x_BD, sq_norms(x_BD), c_KD)
    exact_BK, bound_B = exact_sq_distances(x_BD, c_KD), error_bound(x_BD, c_KD)
    chosen_B = exact_BK[np.arange(b), labels_B.numpy()]
    assert (chosen_B - exact_BK.min(axis=1) <= 2 * bound_B).all()
    assert (np.abs(distances_B.numpy() - chosen_B) <= bound_B).all()


# Breaks when a tile outgrows the cache, or is so small that the product is slow.
@pytest.mark.parametrize("k", [1, 256, 8192, 1_000_000])
def test_tiles_fit_the_cache_down_to_a_least(k: int) -> None:
    rows = ReferenceKernel.tile_rows(16384, k, torch.float32, CPU)
    assert MIN_TILE_ROWS <= rows <= 16384
    assert rows * k * 4 <= max(TILE_BYTES["cpu"], MIN_TILE_ROWS * k * 4)
    assert ReferenceKernel.tile_rows(3, k, torch.float32, CPU) == 3


# Breaks when the distance is expanded: 1e4 from the origin that leaves no digit of 1e-3.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_sq_distances_to_holds_where_the_expanded_form_cancels(dtype: torch.dtype) -> None:
    c_KD = normal(6, 33, dtype=dtype, device=CPU) + 1e4
    labels_B = torch.arange(600) % 6
    x_BD = c_KD[labels_B] + normal(600, 33, dtype=dtype, device=CPU) / 64
    exact_B = exact_sq_distances(x_BD, c_KD)[np.arange(600), labels_B.numpy()]
    tolerance = 40 * torch.finfo(dtype).eps
    result_B = sq_distances_to(x_BD, labels_B, c_KD)
    assert result_B.dtype == torch.float64
    np.testing.assert_allclose(result_B.numpy(), exact_B, rtol=tolerance)
    expanded_B = sq_norms(x_BD) - 2 * (x_BD * c_KD[labels_B]).sum(1) + sq_norms(c_KD)[labels_B]
    assert np.abs(expanded_B.double().numpy() / exact_B - 1).max() > 1000 * tolerance


# Breaks when rows of a later tile get the centroids of an earlier one.
def test_sq_distances_to_in_several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TILE_BYTES, "cpu", 4 * 3 * 10)
    x_BD = normal(47, 3, dtype=torch.float32, device=CPU)
    c_KD = normal(5, 3, dtype=torch.float32, device=CPU)
    labels_B = torch.arange(47) % 5
    exact_B = exact_sq_distances(x_BD, c_KD)[np.arange(47), labels_B.numpy()]
    np.testing.assert_allclose(sq_distances_to(x_BD, labels_B, c_KD).numpy(), exact_B, rtol=1e-6)


# Breaks when a row on its centroid is given rounding instead of 0.
def test_sq_distances_to_of_a_row_on_its_centroid_is_zero() -> None:
    c_KD = normal(4, 768, dtype=torch.float32, device=CPU) + 100
    assert sq_distances_to(c_KD, torch.arange(4), c_KD).tolist() == [0.0] * 4
