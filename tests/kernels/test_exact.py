"""Labels are exact where float32 cannot tell: widely spread pairs, near ties, duplicates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamkm.kernels.exact import recheck_
from streamkm.kernels.reference import ReferenceKernel

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
