"""Labels are exact where float32 cannot tell: widely spread pairs, near ties, duplicates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamkm.kernels import Kernel, rank_nearest, sq_distances_to
from streamkm.kernels.cpu import CpuKernel
from streamkm.kernels.exact import recheck_
from streamkm.kernels.extension import instruction_sets
from streamkm.kernels.reference import ReferenceKernel
from tests.kernels.contract import sq_norms

CPU = torch.device("cpu")


def labels_and_truth(x_BD, c_KD) -> tuple[list[int], list[int]]:
    """Labels of the kernel in float32, and the float64 argmin of sums of squared differences."""
    x, c = torch.from_numpy(x_BD), torch.from_numpy(c_KD)
    kernel = ReferenceKernel(len(x), len(c), torch.float32, CPU)
    labels_B = kernel.assign(x, x.square().sum(dim=1), c).labels_B
    exact_BK = np.square(x_BD[:, None].astype(np.float64) - c_KD[None]).sum(axis=2)
    return labels_B.tolist(), exact_BK.argmin(axis=1).tolist()


@pytest.mark.parametrize("spread", [1e2, 1e3, 1e4, 1e5, 1e6])
def test_pairs_of_clusters_far_apart(rng, spread: float) -> None:
    """Breaks without the recheck: at 1e6 half of the labels are wrong in float32."""
    ends = np.array([[-spread, 0], [-spread, 4], [spread, 0], [spread, 4]])
    x_BD = (ends[rng.integers(4, size=3000)] + rng.normal(0, 0.5, (3000, 2))).astype(np.float32)
    labels, truth = labels_and_truth(x_BD, ends.astype(np.float32))
    assert labels == truth


def test_equal_centroids_tie_to_the_lowest_index(rng) -> None:
    """Breaks when equal centroids get unequal scores: a product may round its columns unlike."""
    c_KD = rng.normal(size=(3, 17)).astype(np.float32)[[0, 1, 0, 2, 1, 0]]
    labels, truth = labels_and_truth(rng.normal(size=(200, 17)).astype(np.float32), c_KD)
    assert labels == truth
    assert set(labels) <= {0, 1, 3}


@given(
    st.integers(1, 40),
    st.integers(2, 12),
    st.integers(1, 9),
    st.sampled_from([0.125, 1.0, 1e4]),
    st.integers(0, 2**32 - 1),
)
def test_any_rows_on_a_lattice(n: int, k: int, d: int, offset: float, seed: int) -> None:
    """Breaks when a tie or a near tie is decided by rounding: a lattice is full of them.

    (Offsets are such that the lattice, and so every tie, is exact in float32.)
    """
    rng = np.random.default_rng(seed)
    x_BD = (rng.integers(0, 3, (n, d)) + offset).astype(np.float32)
    c_KD = (rng.integers(0, 3, (k, d)) + offset).astype(np.float32)
    labels, truth = labels_and_truth(x_BD, c_KD)
    assert labels == truth


def test_more_uncertain_rows_than_fit_one_tile(rng, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when parts of the rows, or of the pairs, are put back in the wrong places."""
    monkeypatch.setattr("streamkm.kernels.exact.TILE_ELEMENTS", 7)
    c_KD = rng.normal(size=(5, 3)).astype(np.float32)
    x_BD = (c_KD[rng.integers(5, size=100)] + 1e7).astype(np.float32)
    labels, truth = labels_and_truth(x_BD, c_KD + np.float32(1e7))
    assert labels == truth


def test_one_far_centroid_leaves_the_others_rows_certain(
    rng, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when the longest centroid sets the bound: every row would be looked at again."""
    uncertain = []

    def count(labels_B, sq_distances_B, uncertain_B, x_BD, centroids_KD) -> None:
        uncertain.append(int(uncertain_B.sum()))
        recheck_(labels_B, sq_distances_B, uncertain_B, x_BD, centroids_KD)

    monkeypatch.setattr("streamkm.kernels.reference.recheck_", count)
    x_BD = rng.normal(size=(2000, 16)).astype(np.float32)
    c_KD = rng.normal(size=(50, 16)).astype(np.float32)
    c_KD[7] *= 1e5
    labels, truth = labels_and_truth(x_BD, c_KD)
    assert labels == truth
    assert sum(uncertain) < 100


def test_scores_that_overflow(rng) -> None:
    """Breaks when a row without a finite score gets the label 0 unseen."""
    c_KD = np.array([[1.5e19, 0], [-1.5e19, 0], [0, 1e18]], np.float32)
    labels, truth = labels_and_truth(-c_KD, c_KD)
    assert labels == truth


@pytest.mark.skipif(not instruction_sets(), reason="without an extension there is one kernel")
@pytest.mark.parametrize("d", [7, 16, 45, 130])
def test_kernels_on_a_cpu_decide_near_ties_alike(rng, d: int) -> None:
    """Breaks when a kernel adds up squared differences in another order than the others.

    Each centroid has the same features in another order, so that only rounding tells them apart.
    """
    x_BD = torch.from_numpy(np.repeat(rng.normal(size=(60, 1)), d, axis=1)).float()
    c_KD = torch.from_numpy(rng.permuted(np.tile(rng.normal(size=d), (9, 1)), axis=1)).float()
    pairs = torch.cartesian_prod(torch.arange(60), torch.arange(9))
    exact_P = sq_distances_to(x_BD[pairs[:, 0]], pairs[:, 1], c_KD)
    exact_BK = exact_P.view(60, 9)
    torch.testing.assert_close(exact_BK, exact_BK[:, :1].expand(60, 9), rtol=1e-13, atol=0)
    expected = exact_BK.argmin(dim=1).tolist()
    assert len(set(expected)) > 2
    # The last set has no fused multiply-add, and rounds products too.
    sets = instruction_sets()[:-1] or instruction_sets()
    kernels: list[Kernel] = [ReferenceKernel(60, 9, torch.float32, CPU)]
    kernels += [CpuKernel(60, 9, torch.float32, CPU, instruction_set=each) for each in sets]
    for kernel in kernels:
        assert kernel.assign(x_BD, sq_norms(x_BD), c_KD).labels_B.tolist() == expected
    assert rank_nearest(x_BD, sq_norms(x_BD), c_KD, 2).labels_BM[:, 0].tolist() == expected
