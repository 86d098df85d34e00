"""Spherical k-means: rows and centroids of unit length."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.preprocessing import normalize

from streamkm.clustering.batch import Batch
from streamkm.clustering.preparation import Preparation
from streamkm.clustering.scaling import RunningMoments, Scaling
from streamkm.kernels.reference import ReferenceKernel
from tests.clustering.streams import (
    CPU,
    batch_of,
    cut,
    lloyd,
    minibatch,
    run_epoch,
    run_lloyd,
    state_from,
)


def unit_batch(rows: np.ndarray, dtype: torch.dtype = torch.float64) -> Batch:
    """As a run prepares it for ``--metric cosine``."""
    x_ND = torch.as_tensor(rows).to(dtype, copy=True)
    scaling = Scaling.fit("none", "cosine", RunningMoments.empty(x_ND.shape[1], CPU))
    return Preparation(scaling, torch.empty_like(x_ND))(x_ND, slice(None))


def spherical_lloyd(rows: np.ndarray, centroids: np.ndarray, passes: int) -> np.ndarray:
    """NumPy: greatest inner product, then the direction of the sum."""
    for _ in range(passes):
        labels = (rows @ centroids.T).argmax(axis=1)
        sums = np.stack([rows[labels == j].sum(axis=0) for j in range(len(centroids))])
        centroids = normalize(sums)
    return centroids


# Breaks when centroids are means of unit rows, which are shorter, or keep an old length.
def test_lloyd_is_spherical_k_means_in_numpy() -> None:
    rows = normalize(load_digits().data)
    state = state_from(rows[:10])
    history = run_lloyd(state, cut(rows, 200, unit=True), passes=7, spherical=True)
    expected = spherical_lloyd(rows, rows[:10], 7)
    np.testing.assert_allclose(state.centroids_KD, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(torch.linalg.vector_norm(state.centroids_KD, dim=1), 1, rtol=1e-14)
    # |x - c|^2 = 2 - 2 x.c, so that lower inertia is greater similarity.
    assert history == sorted(history, reverse=True)


# Breaks when a length of the input counts: cosine knows directions only.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_lengths_of_rows_do_not_matter(rng, dtype) -> None:
    rows = rng.normal(size=(300, 6))
    scaled = rows * np.exp2(rng.integers(-20, 20, (300, 1)))
    states = [state_from(normalize(rows[:5]), dtype=dtype) for _ in range(2)]
    for state, each in zip(states, (rows, scaled), strict=True):
        run_lloyd(state, [unit_batch(each, dtype)], passes=5, spherical=True)
    torch.testing.assert_close(states[0].centroids_KD, states[1].centroids_KD)


# Breaks when mini-batches renormalise the sums: later rows would count more.
def test_minibatch_is_the_direction_of_all_rows_so_far(rng) -> None:
    rows = normalize(rng.normal([3, 1, 0], 1, (60, 3)))
    state = state_from(rows[:1])
    run_epoch(minibatch(1, 20, spherical=True), state, cut(rows, 20, unit=True), 0)
    np.testing.assert_allclose(state.centroids_KD, normalize(rows.sum(axis=0)[None]), rtol=1e-12)
    assert state.counts_K.tolist() == [60]


# Breaks when a row without a direction becomes NaN, or moves a centroid, or becomes one.
def test_rows_of_zeros_have_no_direction(rng) -> None:
    rows = np.concatenate((rng.normal([5, 0, 0], 0.1, (20, 3)), np.zeros((30, 3))))
    batch = unit_batch(rng.permutation(rows))
    assert int((batch.sq_norms_B == 0).sum()) == 30
    # The second centroid attracts nothing, and zero rows are the farthest of all.
    state = state_from([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, -1.0]])
    run_lloyd(state, [batch], passes=6, spherical=True)
    np.testing.assert_allclose(torch.linalg.vector_norm(state.centroids_KD, dim=1), 1, rtol=1e-12)
    assert float(state.inertia) == pytest.approx(30, abs=1)


# Breaks when the distance of a zero row is not that of the origin from the sphere.
def test_rows_of_zeros_are_at_distance_1() -> None:
    axes_KD = torch.eye(4, dtype=torch.float64)
    batch = unit_batch(np.zeros((5, 4)))
    kernel = ReferenceKernel(5, 4, torch.float64, CPU)
    labels_B, sq_distances_B = kernel.assign(batch.x_BD, batch.sq_norms_B, axes_KD)
    # All are equally near, exactly so on the axes: the lowest index.
    assert labels_B.tolist() == [0] * 5
    assert sq_distances_B.tolist() == [1.0] * 5


# Breaks when rows of zeros are counted where the last bits of a centroid's length put them:
# sizes would not be those of the labels that predict gives.
@pytest.mark.parametrize("algorithm", [minibatch, lloyd])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_rows_of_zeros_count_for_the_first_cluster(rng, algorithm, dtype) -> None:
    rows = np.concatenate((rng.normal(size=(40, 7)), np.zeros((25, 7))))
    batch = unit_batch(rng.permutation(rows), dtype)
    centroids = normalize(rng.normal(size=(6, 7)))
    centroids[3:] *= 1 - 1e-6
    state = state_from(centroids, dtype=dtype)
    state.begin_epoch_()
    algorithm(6, 65, dtype, spherical=True).update_(state, batch, epoch=0, index=0)
    without = state_from(centroids, dtype=dtype)
    without.begin_epoch_()
    alone = unit_batch(rows[:40], dtype)
    algorithm(6, 65, dtype, spherical=True).update_(without, alone, epoch=0, index=0)
    added = state.counts_K - without.counts_K
    assert added.tolist() == [25, 0, 0, 0, 0, 0]
    torch.testing.assert_close(state.sums_KD, without.sums_KD)
    # Each at distance 1 from the unit vector.
    gained = float(state.inertia) - float(without.inertia)
    assert gained == pytest.approx(25, rel=1e-5)


# Breaks when opposite rows, whose sum is zero, make a centroid of zeros or NaN.
def test_a_sum_without_direction_leaves_the_centroid() -> None:
    state = state_from([[0.0, 1.0]])
    rows = [[1.0, 0.0], [-1.0, 0.0]]
    minibatch(1, 2, spherical=True).update_(state, batch_of(rows, unit=True), epoch=0, index=0)
    assert state.centroids_KD.tolist() == [[0.0, 1.0]]
