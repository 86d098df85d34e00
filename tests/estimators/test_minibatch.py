"""MiniBatchKMeans beside scikit-learn's, from the same centroids in the same order."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import cluster
from sklearn.datasets import load_digits

from streamkm import MiniBatchKMeans
from tests.data_sets import DataSet, on_data_sets
from tests.estimators.comparison import assert_close


# Breaks when partial_fit counts, weights or moves otherwise than scikit-learn's.
@pytest.mark.parametrize("batch_size", [30, 100])
@on_data_sets
def test_partial_fit_follows_scikit_learn(data: DataSet, batch_size: int) -> None:
    x, k = data.rows, data.k
    # (The first rows of iris would do worse: one row is as far from two of them, to the
    # last bit, and whose it is decides all that follows.)
    first = x[:: len(x) // k][:k]
    theirs = cluster.MiniBatchKMeans(k, init=first, n_init=1, reassignment_ratio=0)
    ours = MiniBatchKMeans(k, init=first)
    for start in (*range(0, len(x), batch_size),) * 2:
        batch = x[start : start + batch_size]
        theirs.partial_fit(batch)
        ours.partial_fit(batch)
        assert_close(ours.cluster_centers_, theirs.cluster_centers_)
        np.testing.assert_array_equal(ours.labels_, theirs.labels_)
        assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-9)
    assert ours.n_steps_ == theirs.n_steps_
    assert ours.counts_.sum() == 2 * len(x)


def test_known_figures_of_partial_fit() -> None:
    x = load_digits().data
    kmeans = MiniBatchKMeans(10, init=x[:10], compute_labels=False)
    inertias = []
    for _ in range(3):
        for start in range(0, len(x), 100):
            kmeans.partial_fit(x[start : start + 100])
        inertias.append(round(-kmeans.score(x), 6))
    assert kmeans.n_steps_ == 54
    assert inertias == [1202321.806222, 1188222.625317, 1181455.439692]


# Breaks when one call is several updates: every row is assigned to the same centroids.
def test_a_large_batch_is_one_update(rng: np.random.Generator) -> None:
    x = rng.normal(size=(40_000, 3))
    theirs = cluster.MiniBatchKMeans(5, init=x[:5], n_init=1, reassignment_ratio=0)
    ours = MiniBatchKMeans(5, init=x[:5])
    for _ in range(2):
        theirs.partial_fit(x)
        ours.partial_fit(x)
        assert_close(ours.cluster_centers_, theirs.cluster_centers_)


# float32 has 24 bits: a count of 2^24 in it no longer grows, which freezes scikit-learn's.
def test_counts_grow_beyond_float32() -> None:
    n_rows = 2**24
    x = np.zeros((n_rows, 1), np.float32)
    kmeans = MiniBatchKMeans(1, init=x[:1], compute_labels=False).partial_fit(x)
    for _ in range(3):
        kmeans.partial_fit(np.full((1, 1), 2.0**22, np.float32))
    assert kmeans.counts_.tolist() == [n_rows + 3]
    assert kmeans.cluster_centers_[0, 0] == np.float32(3 * 2.0**22 / (n_rows + 3))


# Breaks when the reason is not the one that ended the passes, or stays that of an earlier fit.
def test_why_it_stopped() -> None:
    digits = load_digits().data
    kmeans = MiniBatchKMeans(10, init=digits[:10], rate="mean", max_iter=50, batch_size=100)
    kmeans.set_params(random_state=0, max_no_improvement=None, min_gain=0.01).fit(digits)
    assert kmeans.stop_reason_ == "the last epoch lowered the inertia by no more than min-gain"
    assert 1 < kmeans.n_iter_ < 50
    assert kmeans.n_steps_ == 18 * kmeans.n_iter_
    kmeans.set_params(min_gain=0, max_no_improvement=3).fit(digits)
    assert "for max-no-improvement steps" in kmeans.stop_reason_
    kmeans.set_params(max_iter=1, max_no_improvement=None).fit(digits)
    assert kmeans.stop_reason_ == "all epochs are done (1)"
    # What came last was no fit.
    assert not hasattr(MiniBatchKMeans(10).partial_fit(digits), "stop_reason_")


# Breaks when the end of a run is not said in scikit-learn's words, nor the pass that gained little.
def test_verbose_says_that_a_pass_gained_little(capsys: pytest.CaptureFixture[str]) -> None:
    x = np.array([[0.0], [2.0], [10.0], [12.0]])
    kmeans = MiniBatchKMeans(2, init=x[[0, 2]], rate="mean", max_iter=9, verbose=1, random_state=0)
    kmeans.set_params(max_no_improvement=None).fit(x)
    said = f"Converged (small gain of pass {kmeans.n_iter_ - 1}) at step {kmeans.n_steps_}\n"
    assert capsys.readouterr().out.endswith(said)
    assert kmeans.n_iter_ < 9


# Breaks when a weight is left out of a mean, an inertia or a count of what came before.
@on_data_sets
def test_weights_are_scikit_learn_s(data: DataSet) -> None:
    x, k = data.rows, data.k
    weights = np.random.default_rng(0).exponential(size=len(x))
    first = x[:: len(x) // k][:k]
    online = cluster.MiniBatchKMeans(k, init=first, n_init=1, reassignment_ratio=0)
    kmeans = MiniBatchKMeans(k, init=first)
    for i, rows in enumerate(np.array_split(np.arange(len(x)), 6)):
        # Batches without weights come in between, and count as if every weight were 1.
        batch_weights = None if i % 3 == 1 else weights[rows]
        online.partial_fit(x[rows], sample_weight=batch_weights)
        kmeans.partial_fit(x[rows], sample_weight=batch_weights)
        assert_close(kmeans.cluster_centers_, online.cluster_centers_)
        assert kmeans.inertia_ == pytest.approx(online.inertia_, rel=1e-9)


# Breaks when the error names a remedy that partial_fit refuses.
def test_what_an_error_advises_is_accepted(rng: np.random.Generator) -> None:
    near = rng.normal(size=(500, 3)).astype(np.float32)
    far = near * np.float32(1e20)
    kmeans = MiniBatchKMeans(3, random_state=0).partial_fit(near)
    advice = r"use nan='drop' .* or let fit make another model, with scale='zscore', from rows"
    with pytest.raises(ValueError, match=advice):
        kmeans.partial_fit(far)
    assert kmeans.set_params(nan="drop").partial_fit(far).counts_.sum() == len(near)
    kmeans.set_params(nan="error", scale="zscore").fit(far)
    assert kmeans.partial_fit(far).counts_.sum() == 2 * len(far)
