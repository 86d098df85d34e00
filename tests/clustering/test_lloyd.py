"""Lloyd's algorithm over a stream, by hand and against scikit-learn."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine

from streamkm.clustering.state import BY_TOL, RUNNING
from tests.clustering.streams import (
    batch_of,
    bits,
    cut,
    inertia_of,
    lloyd,
    run_epoch,
    run_lloyd,
    state_from,
)

DATA_SETS = {
    "iris": load_iris,
    "wine": load_wine,
    "breast_cancer": load_breast_cancer,
    "digits": load_digits,
}


# Breaks when centroids move within a pass, or sums of the pass before stay.
def test_two_passes_by_hand() -> None:
    state = state_from([[0.0], [10.0]])
    batches = [batch_of([[1.0], [4.0]]), batch_of([[6.0], [13.0], [1.0]])]
    algorithm = lloyd(2, 3)
    state.begin_epoch_()
    algorithm.update_(state, batches[0], epoch=0, index=0)
    assert state.centroids_KD[:, 0].tolist() == [0.0, 10.0]
    algorithm.update_(state, batches[1], epoch=0, index=1)
    algorithm.finish_epoch_(state)
    assert state.centroids_KD[:, 0].tolist() == [2.0, 9.5]
    assert state.counts_K.tolist() == [3, 2]
    assert float(state.inertia) == 1 + 16 + 16 + 9 + 1
    assert float(state.batch_inertia) == pytest.approx(26 / 3)
    assert float(state.shift) == 2**2 + 0.5**2
    run_epoch(algorithm, state, batches, 1)
    assert state.counts_K.tolist() == [3, 2]
    assert float(state.shift) == 0
    assert int(state.stop) == BY_TOL
    assert int(state.n_steps) == 4


# Breaks when a pass is not one exact update, or the verdict comes a pass early or late.
@pytest.mark.parametrize(
    ("data", "k", "inertia", "passes"),
    [(load_iris, 3, 78.855666, 12), (load_digits, 10, 1167859.384007, 14)],
    ids=["iris", "digits"],
)
def test_known_inertia_and_passes(data, k: int, inertia: float, passes: int) -> None:
    rows = data().data
    state = state_from(rows[:k])
    history = run_lloyd(state, cut(rows, 64))
    assert inertia_of(rows, state) == pytest.approx(inertia, abs=1e-6)
    assert history[-1] == pytest.approx(inertia, abs=1e-6)
    assert len(history) == passes


# Breaks when the tolerance, the tie of labels or a mean is otherwise than scikit-learn's.
@pytest.mark.parametrize("tolerance", [0.0, 1e-4])
@pytest.mark.parametrize("name", DATA_SETS)
def test_centroids_are_scikit_learn_s(name: str, tolerance: float) -> None:
    rows = DATA_SETS[name]().data
    k = {"digits": 10}.get(name, 3)
    reference = KMeans(k, init=rows[:k], n_init=1, algorithm="lloyd", tol=tolerance).fit(rows)
    state = state_from(rows[:k], tolerance * rows.var(axis=0).mean())
    history = run_lloyd(state, cut(rows, 50))
    np.testing.assert_allclose(state.centroids_KD, reference.cluster_centers_, rtol=1e-9, atol=1e-9)
    assert len(history) == reference.n_iter_
    assert inertia_of(rows, state) == pytest.approx(reference.inertia_, rel=1e-12)


# Breaks when batches are weighted, or a last short one is lost.
@pytest.mark.parametrize("size", [1, 7, 149, 150])
def test_the_batches_do_not_matter(size: int) -> None:
    rows = load_iris().data
    one, other = state_from(rows[:3]), state_from(rows[:3])
    assert run_lloyd(one, cut(rows, size)) == pytest.approx(run_lloyd(other, cut(rows, 50)))
    torch.testing.assert_close(one.centroids_KD, other.centroids_KD)


# Breaks when a move is no mean of its rows: only that lowers the inertia of any pass.
@settings(max_examples=20)
@given(st.integers(1, 12), st.integers(1, 6), st.integers(1, 60), st.integers(0, 2**32))
def test_inertia_never_increases(k: int, d: int, size: int, seed: int) -> None:
    rows = np.random.default_rng(seed).standard_t(2, (80, d))
    history = run_lloyd(state_from(rows[:k]), cut(rows, size))
    for before, after in itertools.pairwise(history):
        assert after <= before * (1 + 1e-12)


# Breaks when an empty cluster keeps its place, becomes NaN, or the pass after it that
# moves nothing else is taken for the end.
def test_an_empty_cluster_gets_a_far_row(rng) -> None:
    rows = np.concatenate((rng.normal(0, 0.1, (300, 2)), rng.normal(9, 0.1, (300, 2))))
    rows = rng.permutation(rows)
    state = state_from([[0.0, 0.0], [500.0, 500.0]])
    algorithm = lloyd(2, 100)
    run_epoch(algorithm, state, cut(rows, 100), 0)
    assert int(state.n_reseeded) == 1
    assert int(state.stop) == RUNNING
    assert (rows == state.centroids_KD[1].numpy()).all(axis=1).any()
    for epoch in range(1, 9):
        run_epoch(algorithm, state, cut(rows, 100), epoch)
    assert int(state.stop) == BY_TOL
    assert state.counts_K.tolist() == [300, 300]
    assert int(state.n_reseeded) == 1


# Breaks when the shift is taken before the empty cluster is moved: the run would end here.
def test_a_pass_that_only_reseeds_is_not_the_last() -> None:
    state = state_from([[0.0], [500.0]])
    batches = [batch_of([[-1.0], [1.0], [-1.0], [1.0]])]
    run_epoch(lloyd(2, 4), state, batches, 0)
    assert int(state.stop) == RUNNING
    assert float(state.shift) > 0
    run_lloyd(state, batches)
    assert sorted(state.centroids_KD[:, 0].tolist()) == [-1.0, 1.0]


# Breaks when rows that differ from their centroids by rounding take the places of
# clusters that nothing is left for: every pass would move one, and none be the last.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_fewer_distinct_rows_than_clusters_comes_to_an_end(rng, dtype) -> None:
    distinct = rng.normal(3, 3, (5, 6))
    rows = distinct[rng.integers(5, size=500)]
    state = state_from(np.concatenate((distinct[:4], distinct[:2], distinct[:2])), dtype=dtype)
    history = run_lloyd(state, cut(rows, 100, dtype), passes=20)
    assert len(history) < 20
    assert inertia_of(rows, state) < 1e-6


# Breaks when zeros that stand for dropped rows are counted, summed or drawn.
def test_dropped_rows_do_not_count(rng) -> None:
    rows = rng.normal(5, 1, (90, 3))
    with_nan = np.insert(rows, [0, 30, 31, 90], np.nan, axis=0)
    one, other = state_from(rows[:4]), state_from(rows[:4])
    assert run_lloyd(one, cut(rows, 94)) == pytest.approx(run_lloyd(other, cut(with_nan, 94)))
    torch.testing.assert_close(one.centroids_KD, other.centroids_KD)
    assert int(other.n_dropped) == 4
    assert int(other.counts_K.sum()) == 90


# Breaks when the order of bits depends on anything but the batches.
def test_the_same_passes_give_the_same_bits(rng) -> None:
    rows = rng.normal(size=(500, 7))

    def final(seed: int) -> dict[str, bytes]:
        state = state_from(np.concatenate((rows[:6], rows[:3] + 1e3)), dtype=torch.float32)
        run_lloyd(state, cut(rows, 64, torch.float32), seed=seed)
        return bits(state)

    assert final(0) == final(0)
