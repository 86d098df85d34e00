"""Lloyd's algorithm over a stream, by hand and against scikit-learn."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from streamkm.clustering.lloyd import is_closed
from streamkm.clustering.reservoir import OFFERED_PER_BATCH
from streamkm.clustering.state import BY_TOL, CONVERGED, RUNNING
from tests.clustering.contract import AlgorithmContract
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
from tests.data_sets import DIGITS, IRIS, DataSet, on_data_sets

if TYPE_CHECKING:
    from streamkm.clustering.batch import Batch
    from streamkm.clustering.state import KMeansState


class TestLloyd(AlgorithmContract):
    name = "lloyd"


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
    # The same rows from the centroids as they are now: 1, 4, 1 from 2 and 6, 13 from 9.5.
    assert float(state.settled_inertia) == 1 + 4 + 1 + 2 * 3.5**2
    run_epoch(algorithm, state, batches, 1)
    assert state.counts_K.tolist() == [3, 2]
    assert float(state.shift) == 0
    assert int(state.stop) == CONVERGED
    assert int(state.n_steps) == 4


# Breaks when a pass is not one exact update, or the verdict comes a pass early or late.
@pytest.mark.parametrize(
    ("data", "inertia", "passes"),
    [(IRIS, 78.855666, 12), (DIGITS, 1167859.384007, 14)],
    ids=["iris", "digits"],
)
def test_known_inertia_and_passes(data: DataSet, inertia: float, passes: int) -> None:
    rows = data.rows
    state = state_from(rows[: data.k])
    history = run_lloyd(state, cut(rows, 64))
    assert inertia_of(rows, state) == pytest.approx(inertia, abs=1e-6)
    assert history[-1] == pytest.approx(inertia, abs=1e-6)
    assert len(history) == passes


# Breaks when the tolerance, the tie of labels or a mean is otherwise than scikit-learn's.
@pytest.mark.parametrize("tolerance", [0.0, 1e-4])
@on_data_sets
def test_centroids_are_scikit_learn_s(data: DataSet, tolerance: float) -> None:
    rows, k = data.rows, data.k
    reference = KMeans(k, init=rows[:k], n_init=1, algorithm="lloyd", tol=tolerance).fit(rows)
    state = state_from(rows[:k], tolerance * rows.var(axis=0).mean())
    history = run_lloyd(state, cut(rows, 50))
    np.testing.assert_allclose(state.centroids_KD, reference.cluster_centers_, rtol=1e-9, atol=1e-9)
    assert len(history) == reference.n_iter_
    assert inertia_of(rows, state) == pytest.approx(reference.inertia_, rel=1e-12)


# Breaks when batches are weighted, or a last short one is lost.
@pytest.mark.parametrize("size", [1, 7, 149, 150])
def test_the_batches_do_not_matter(size: int) -> None:
    rows = IRIS.rows
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
    assert int(state.stop) == CONVERGED
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


# ---- the closing pass -------------------------------------------------------


def close(state: KMeansState, batches: list[Batch], **options) -> int:
    """Closing passes as a run makes them; returns how many."""
    algorithm = lloyd(
        state.k,
        max(len(batch.x_BD) for batch in batches),
        state.centroids_KD.dtype,
        closing=True,
        **options,
    )
    for epoch in range(100):
        algorithm.begin_epoch_(state)
        for index, batch in enumerate(batches):
            algorithm.update_(state, batch, epoch=epoch, index=index)
        algorithm.finish_epoch_(state)
        if is_closed(state):
            return epoch + 1
    raise AssertionError("no end")


# Breaks when the closing pass is no Lloyd step, leaves a trace of what came before, or
# changes the verdict on the run.
@pytest.mark.parametrize("verdict", [RUNNING, BY_TOL])
def test_the_closing_pass_is_one_lloyd_step_after_whatever_was_before(rng, verdict) -> None:
    rows = rng.normal(size=(200, 3))
    one, other = state_from(rows[:5]), state_from(rows[:5])
    run_epoch(lloyd(5, 50), one, cut(rows, 50), 0)
    for tensor in (other.counts_K, other.sums_KD, other.inertia, other.n_dropped):
        tensor.fill_(77)
    other.stop.fill_(verdict)
    assert close(other, cut(rows, 50)) == 1
    for name in ("centroids_KD", "counts_K", "sums_KD", "settled_inertia", "n_dropped"):
        assert bits(one)[name] == bits(other)[name], name
    assert int(other.stop) == verdict
    assert int(other.n_steps) == 0


# Breaks when the reported inertia is that of the centroids before the move, of a mean that
# no spherical centroid is, or forgets rows that went to empty clusters.
@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n_far", [0, 3])
def test_settled_inertia_is_that_of_the_partition_about_the_new_centroids(
    rng, spherical, dtype, n_far
) -> None:
    rows = rng.normal(2, 1, (400, 4))
    if spherical:
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    first = rows[:8].copy()
    first[:n_far] = -1e3 if not spherical else -first[:n_far]
    state = state_from(first, dtype=dtype)
    before = torch.cdist(torch.as_tensor(rows), state.centroids_KD.double()).argmin(dim=1)
    close(state, cut(rows, 64, dtype, unit=spherical), spherical=spherical)
    distances = torch.cdist(torch.as_tensor(rows), state.centroids_KD.double()).square()
    labels = before.clone()
    for place in (torch.bincount(before, minlength=8) == 0).nonzero().flatten().tolist():
        labels[distances[:, place].argmin()] = place
    assert state.counts_K.tolist() == torch.bincount(labels, minlength=8).tolist()
    assert int(state.n_reseeded) == n_far
    expected = float(distances.gather(1, labels[:, None]).sum())
    assert float(state.settled_inertia) == pytest.approx(
        expected, rel=1e-5 if dtype == torch.float32 else 1e-12
    )
    assert float(state.settled_inertia) >= inertia_of(rows, state) * (1 - 1e-6)
    if not spherical:
        means = torch.stack([torch.as_tensor(rows)[labels == j].mean(dim=0) for j in range(8)])
        torch.testing.assert_close(state.centroids_KD.double(), means, rtol=1e-5, atol=1e-6)


# Breaks when |x|^2 - 2 x.c + |c|^2 is what is reported: in float32 nothing of it is left here.
def test_inertia_of_tight_clusters_far_apart_in_float32(rng) -> None:
    centres = 2.0**14 * np.sign(rng.normal(size=(8, 16)))
    rows = (np.repeat(centres, 50, axis=0) + rng.normal(0, 0.01, (400, 16))).astype(np.float32)
    state = state_from(centres.astype(np.float32), dtype=torch.float32)
    close(state, cut(rows, 100, torch.float32))
    wide = rows.astype(np.float64).reshape(8, 50, 16)
    expected = np.square(wide - wide.mean(axis=1, keepdims=True)).sum()
    assert float(state.settled_inertia) == pytest.approx(expected, rel=0.02)
    assert float(state.inertia) > 0


# Breaks when a run ends with fewer clusters than asked for although there are rows for
# them: more are empty here than the reservoir holds, and most rows are equal.
@pytest.mark.parametrize("n_distinct", [400, 500])
def test_no_cluster_is_left_empty_if_there_are_rows_for_it(rng, n_distinct) -> None:
    distinct = rng.permutation(n_distinct)[:, None] + 0.5
    rows = np.concatenate((distinct, distinct[rng.integers(3, size=2000)]))
    state = state_from(np.full((400, 1), -1.0))
    assert 2 < close(state, cut(rng.permutation(rows), 300)) < 30
    assert (state.counts_K > 0).all()
    assert int(state.counts_K.sum()) == len(rows)
    assert len(state.centroids_KD.unique(dim=0)) == 400
    if n_distinct == 400:
        assert float(state.settled_inertia) == pytest.approx(0, abs=1e-9)


# Breaks when the search for rows that are not there goes on for ever, or invents clusters.
def test_fewer_distinct_rows_than_clusters_is_closed_all_the_same(rng) -> None:
    distinct = rng.normal(3, 3, (5, 6))
    rows = distinct[rng.integers(5, size=500)]
    for dtype in (torch.float32, torch.float64):
        state = state_from(np.concatenate((distinct[:2], distinct[:2], distinct[:4])), dtype=dtype)
        assert close(state, cut(rows, 100, dtype)) < 5
        assert int((state.counts_K > 0).sum()) == 5
        assert inertia_of(rows, state) < 1e-6


# Breaks when only some rows of a long batch are offered: the one that is alone may be missed.
def test_the_closing_pass_looks_at_every_row() -> None:
    rows = np.zeros((3 * OFFERED_PER_BATCH, 1))
    for place in range(100, 107):
        rows[:] = 0
        rows[place] = 1
        state = state_from([[0.0], [50.0]])
        assert close(state, cut(rows, len(rows)), seed=place) == 1
        assert state.centroids_KD[:, 0].tolist() == [0.0, 1.0]
