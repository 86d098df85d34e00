"""Weights of rows: by hand, against scikit-learn, and as rows that stand there several times."""

from __future__ import annotations

from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.datasets import load_digits, load_iris
from sklearn.preprocessing import StandardScaler

from streamkm.clustering.batch import Batch
from streamkm.clustering.scaling import RunningMoments
from streamkm.clustering.seeding.kmeans_plusplus import RandomRows, kmeans_plusplus
from streamkm.clustering.seeding.sample import Sample
from streamkm.clustering.state import RUNNING, KMeansState, initial_state
from tests.clustering.streams import (
    batch_of,
    cut,
    lloyd,
    minibatch,
    run_epoch,
    run_lloyd,
    state_from,
)


def weighted_state(centroids, dtype=torch.float64, tolerance: float = 0.0) -> KMeansState:
    return initial_state(torch.as_tensor(centroids).to(dtype, copy=True), tolerance, weighted=True)


def weighted_batch(rows, weights, dtype=torch.float64) -> Batch:
    batch = batch_of(rows, dtype)
    batch.weights_B = torch.as_tensor(weights, dtype=torch.float64)
    if batch.dropped_B is not None:
        batch.weights_B = batch.weights_B.masked_fill(batch.dropped_B, 0)
    return batch


def weighted_cut(rows, weights, size: int, dtype=torch.float64) -> list[Batch]:
    return [
        weighted_batch(rows[i : i + size], weights[i : i + size], dtype)
        for i in range(0, len(rows), size)
    ]


# Breaks when a sum is not weighted, is divided by the number of rows, or counts are weights.
def test_two_batches_by_hand() -> None:
    state = weighted_state([[0.0], [10.0]])
    algorithm = minibatch(2, 7)
    state.begin_epoch_()
    algorithm.update_(state, weighted_batch([[1.0], [4.0], [9.0]], [2, 1, 0.5]), epoch=0, index=0)
    assert state.centroids_KD[:, 0].tolist() == [2.0, 9.0]
    assert state.counts_K.tolist() == [2, 1]
    assert state.weights_K.tolist() == [3.0, 0.5]
    assert state.sums_KD[:, 0].tolist() == [6.0, 4.5]
    assert float(state.inertia) == 2 * 1 + 16 + 0.5
    assert float(state.batch_inertia) == pytest.approx(18.5 / 3.5)
    algorithm.update_(state, weighted_batch([[5.0], [8.0], [3.0]], [3, 1.5, 0]), epoch=0, index=1)
    assert state.counts_K.tolist() == [3, 2]
    assert state.centroids_KD[:, 0].tolist() == [(6 + 15) / 6, (4.5 + 12) / 2]
    assert state.epoch_weights_K.tolist() == [6.0, 2.0]


# Breaks when the last step's inertia, or a mean, is otherwise than scikit-learn's.
@pytest.mark.parametrize(("load", "k"), [(load_iris, 3), (load_digits, 10)], ids=["iris", "digits"])
@pytest.mark.parametrize("batch_rows", [33, 2000])
def test_lloyd_is_scikit_learn_s(rng, load, k: int, batch_rows: int) -> None:
    rows = load().data
    weights = rng.exponential(size=len(rows)) * (rng.uniform(size=len(rows)) > 0.2)
    reference = KMeans(k, init=rows[:k], n_init=1, algorithm="lloyd", tol=0)
    reference.fit(rows, sample_weight=weights)
    state = weighted_state(rows[:k])
    history = run_lloyd(state, weighted_cut(rows, weights, batch_rows))
    assert len(history) == reference.n_iter_
    np.testing.assert_allclose(state.centroids_KD, reference.cluster_centers_, rtol=1e-9, atol=1e-9)
    assert float(state.settled_inertia) == pytest.approx(reference.inertia_, rel=1e-12)
    sizes = np.bincount(reference.labels_[weights > 0], minlength=k)
    assert state.counts_K.tolist() == sizes.tolist()
    np.testing.assert_allclose(
        state.weights_K, np.bincount(reference.labels_, weights, minlength=k), rtol=1e-12
    )


# Breaks when a learning rate is not weight over all weight so far.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_minibatch_is_scikit_learn_s_partial_fit(rng, dtype) -> None:
    rows = rng.permutation(load_iris().data)
    weights = rng.exponential(size=150)
    reference = MiniBatchKMeans(3, init=rows[:3], n_init=1, reassignment_ratio=0)
    state = weighted_state(rows[:3], dtype)
    algorithm = minibatch(3, 150, dtype)
    state.begin_epoch_()
    for index in range(15):
        part = slice(10 * index, 10 * index + 10)
        reference.partial_fit(rows[part], sample_weight=weights[part])
        batch = weighted_batch(rows[part], weights[part], dtype)
        algorithm.update_(state, batch, epoch=0, index=index)
        tolerance = 1e-5 if dtype == torch.float32 else 1e-12
        np.testing.assert_allclose(state.centroids_KD, reference.cluster_centers_, rtol=tolerance)
    np.testing.assert_allclose(state.weights_K, reference._counts, rtol=1e-6)


# Breaks when a weight of 2 is anything but the row twice.
@settings(max_examples=25)
@given(st.integers(1, 8), st.integers(1, 4), st.integers(0, 2**32))
def test_whole_weights_are_repetitions(k: int, d: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, weights = rng.normal(size=(60, d)), rng.integers(0, 5, 60)
    repeated = np.repeat(rows, weights, axis=0)
    one, other = weighted_state(rows[:k]), state_from(rows[:k])
    run_epoch(lloyd(k, 300), one, weighted_cut(rows, weights, 13), 0)
    run_epoch(lloyd(k, 300), other, cut(repeated, 29), 0)
    if int(one.n_reseeded) == int(other.n_reseeded) == 0:
        torch.testing.assert_close(one.centroids_KD, other.centroids_KD)
        torch.testing.assert_close(one.weights_K, other.counts_K.double())
        torch.testing.assert_close(one.settled_inertia, other.settled_inertia)


# Breaks when the scale of the weights matters, or passes through float32.
@pytest.mark.parametrize("factor", [1e-290, 2.0**-30, 1e30, 1e280])
def test_only_ratios_of_weights_matter(rng, factor: float) -> None:
    rows, weights = rng.normal(size=(200, 3)), rng.exponential(size=200)
    states = [weighted_state(rows[:4], torch.float32) for _ in range(2)]
    for state, each in zip(states, (weights, weights * factor), strict=True):
        run_lloyd(state, weighted_cut(rows, each, 64, torch.float32), passes=4)
        run_epoch(
            minibatch(4, 64, torch.float32), state, weighted_cut(rows, each, 64, torch.float32), 9
        )
    torch.testing.assert_close(states[0].centroids_KD, states[1].centroids_KD)
    assert states[0].counts_K.tolist() == states[1].counts_K.tolist()


# Breaks when a row that counts for nothing is summed, counted, drawn or dropped for being so.
@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("algorithm", [minibatch, lloyd])
def test_rows_of_weight_0_leave_no_trace(rng, algorithm, spherical) -> None:
    rows, weights = rng.normal(2, 1, (300, 3)), rng.exponential(size=300)
    if spherical:
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    far = np.concatenate((rows[:3], [[900.0, 0, 0], [0, 900.0, 0]]))
    weights[rng.integers(300, size=100)] = 0
    rows[weights == 0] *= 1000
    states = []
    for kept in (weights >= 0, weights > 0):
        state = weighted_state(far)
        step = algorithm(5, 300, spherical=spherical)
        for epoch in range(2):
            run_epoch(step, state, [weighted_batch(rows[kept], weights[kept])], epoch)
        assert (rows[weights > 0].max() + 1 > state.centroids_KD[3:]).all()
        assert int(state.n_dropped) == 0
        assert int(state.counts_K.sum()) <= np.count_nonzero(weights) * 2
        states.append(state)
    if int(states[1].n_reseeded) == 0:
        torch.testing.assert_close(states[0].centroids_KD, states[1].centroids_KD)
    torch.testing.assert_close(states[0].n_reseeded, states[1].n_reseeded)


# Breaks when the dropped keep their weight in the sum that means are divided by.
def test_dropped_rows_weigh_nothing(rng) -> None:
    rows, weights = rng.normal(size=(90, 3)), rng.exponential(size=94)
    with_nan = np.insert(rows, [0, 30, 31, 90], np.nan, axis=0)
    finite = ~np.isnan(with_nan[:, 0])
    one, other = weighted_state(rows[:4]), weighted_state(rows[:4])
    run_lloyd(one, weighted_cut(rows, weights[finite], 94))
    run_lloyd(other, weighted_cut(with_nan, weights, 94))
    torch.testing.assert_close(one.centroids_KD, other.centroids_KD)
    assert int(other.n_dropped) == 4


# Breaks when rows go to empty clusters without their weight, or from sums of the wrong scale.
def test_a_reseeded_cluster_weighs_what_its_row_does(rng) -> None:
    rows, weights = rng.normal(size=(100, 2)), rng.uniform(1, 3, 100)
    state = weighted_state([[0.0, 0.0], [500.0, 500.0]])
    run_epoch(lloyd(2, 100), state, weighted_cut(rows, weights, 40), 0)
    assert state.counts_K.tolist() == [99, 1]
    place = int(np.abs(rows - state.centroids_KD[1].numpy()).sum(axis=1).argmin())
    assert float(state.weights_K[1]) == weights[place]
    others = np.arange(100) != place
    mean = np.average(rows[others], axis=0, weights=weights[others])
    np.testing.assert_allclose(state.centroids_KD[0], mean, rtol=1e-9)
    expected = (weights[others, None] * (rows[others] - mean) ** 2).sum()
    assert float(state.settled_inertia) == pytest.approx(expected, rel=1e-9)
    run_lloyd(state, weighted_cut(rows, weights, 40))
    assert int(state.stop) != RUNNING


# Breaks when a cluster gives away all its weight but for a rounding error.
def test_a_cluster_keeps_the_row_that_is_nearly_all_its_weight() -> None:
    state = weighted_state([[0.0], [500.0]])
    batch = weighted_batch([[1.0], [-3.0], [2.0]], [1e-20, 1.0, 1e-20])
    run_epoch(lloyd(2, 3), state, [batch], 0)
    assert state.centroids_KD.isfinite().all()
    assert float(state.centroids_KD[0, 0]) == pytest.approx(-3.0)


# ---- statistics and seeding -------------------------------------------------


# Breaks when deviations are weighted otherwise than by scikit-learn's scaler.
@pytest.mark.parametrize("size", [7, 1000])
def test_moments_are_standard_scaler_s(rng, size: int) -> None:
    rows, weights = rng.normal(5, 2, (300, 3)), rng.exponential(size=300)
    weights[::7] = 0
    rows[::7] = 1e6
    reference = StandardScaler().fit(rows, sample_weight=weights)
    moments = RunningMoments.empty(3, torch.device("cpu"))
    for start in range(0, 300, size):
        part = slice(start, start + size)
        moments.update_(torch.as_tensor(rows[part]), torch.as_tensor(weights[part]))
    np.testing.assert_allclose(moments.mean_D, reference.mean_, rtol=1e-12)
    np.testing.assert_allclose(moments.variance_D, reference.var_, rtol=1e-10)
    assert moments.max_D.max() < 1e5  # min-max knows no weights, but for those of 0.
    assert int(moments.n_dropped) == 0


def one_random_row(rows, k, seed, *, weights_S):
    stage = RandomRows(Sample(rows, weights_S), k, seed)
    stage.step_(0)
    return stage.centroids_KD


@pytest.mark.parametrize(
    "seed_rows", [one_random_row, kmeans_plusplus, partial(kmeans_plusplus, batched=True)]
)
def test_seeds_are_drawn_by_weight(seed_rows) -> None:
    rows = torch.arange(5, dtype=torch.float64)[:, None]
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0, 1e-12], dtype=torch.float64)
    first = [int(seed_rows(rows, 1, seed, weights_S=weights)[0, 0]) for seed in range(2000)]
    counts = np.bincount(first, minlength=5)
    expected = 200 * np.array([1, 2, 3, 4])
    assert counts[4] == 0
    assert (np.abs(counts[:4] - expected) < 5 * np.sqrt(expected)).all()


def test_kmeans_plusplus_looks_for_weight_not_only_for_distance() -> None:
    rows = torch.tensor([[0.0], [10.0], [1000.0]], dtype=torch.float64)
    weights = torch.tensor([1e6, 1e6, 1e-9], dtype=torch.float64)
    for seed, batched in product(range(20), (False, True)):
        chosen_KD = kmeans_plusplus(rows, 2, seed, weights_S=weights, batched=batched)
        assert sorted(chosen_KD[:, 0].tolist()) == [0.0, 10.0]
