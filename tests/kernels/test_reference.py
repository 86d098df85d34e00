"""The kernel in plain torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamkm.kernels.reference import (
    MIN_TILE_ROWS,
    TILE_BYTES,
    ReferenceKernel,
    mass_by_label,
)
from tests.kernels.contract import (
    KernelContract,
    MakeKernel,
    error_bound,
    exact_sq_distances,
    sq_norms,
)

CPU = torch.device("cpu")


class TestReference(KernelContract):
    # Its products are the matrix library's, and MKL adds up many features of float64 in as many
    # parts as it has threads, on Intel's processors.
    threads_round = True

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


# Breaks when a label without a row has no place in the masses, or a weight goes elsewhere.
def test_mass_of_each_label() -> None:
    weights, labels = torch.tensor([0.5, 2, 0, 4], dtype=torch.float64), torch.tensor([1, 0, 2, 1])
    assert mass_by_label(weights, labels, 4).tolist() == [2, 4.5, 0, 0]
