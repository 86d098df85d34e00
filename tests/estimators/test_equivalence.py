"""The estimators beside scikit-learn's, from the same centroids in the same order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn import cluster
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.pipeline import Pipeline

from streamkm import KMeans, MiniBatchKMeans

DATA_SETS: dict[str, tuple[Callable[[], Any], int]] = {
    "iris": (load_iris, 3),
    "wine": (load_wine, 3),
    "breast_cancer": (load_breast_cancer, 4),
    "digits": (load_digits, 10),
}


def data(name: str) -> tuple[np.ndarray, int]:
    load, k = DATA_SETS[name]
    return load().data, k


def assert_close(ours: np.ndarray, theirs: np.ndarray) -> None:
    """To rounding, of numbers that are means of numbers up to some hundreds."""
    np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-11)


# Breaks when a pass moves the centroids otherwise, ends too early or too late, or labels and
# inertia are not those of the centroids that are returned.
@pytest.mark.parametrize("tol", [0.0, 1e-4])
@pytest.mark.parametrize("name", DATA_SETS)
def test_kmeans_follows_lloyd(name: str, tol: float) -> None:
    x, k = data(name)
    theirs = cluster.KMeans(k, init=x[:k], n_init=1, tol=tol).fit(x)
    ours = KMeans(k, init=x[:k], tol=tol).fit(x)
    assert ours.n_iter_ == theirs.n_iter_
    assert_close(ours.cluster_centers_, theirs.cluster_centers_)
    np.testing.assert_array_equal(ours.labels_, theirs.labels_)
    assert ours.labels_.dtype == theirs.labels_.dtype
    assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-12)
    assert ours.score(x) == pytest.approx(theirs.score(x), rel=1e-12)
    np.testing.assert_allclose(ours.transform(x), theirs.transform(x), rtol=1e-7, atol=1e-6)


# Breaks when an iteration is left out: every one is compared, not only where they end.
@pytest.mark.parametrize("max_iter", [1, 2, 3, 7])
def test_kmeans_follows_every_iteration(max_iter: int) -> None:
    x = load_digits().data
    theirs = cluster.KMeans(10, init=x[:10], n_init=1, tol=0, max_iter=max_iter).fit(x)
    ours = KMeans(10, init=x[:10], tol=0, max_iter=max_iter).fit(x)
    assert_close(ours.cluster_centers_, theirs.cluster_centers_)
    assert (ours.n_iter_, theirs.n_iter_) == (max_iter, max_iter)


# The figures were had from scikit-learn 1.9.1 once and for all: they also break when
# scikit-learn and this change together.
def test_known_figures_of_lloyd() -> None:
    iris, digits = load_iris().data, load_digits().data
    kmeans = KMeans(3, init=iris[:3]).fit(iris)
    assert (kmeans.n_iter_, round(kmeans.inertia_, 6)) == (12, 78.855666)
    kmeans = KMeans(10, init=digits[:10], tol=0).fit(digits)
    assert (kmeans.n_iter_, round(kmeans.inertia_, 6)) == (14, 1167859.384007)


# Breaks when partial_fit counts, weights or moves otherwise than scikit-learn's.
@pytest.mark.parametrize("batch_size", [30, 100])
@pytest.mark.parametrize("name", DATA_SETS)
def test_partial_fit_follows_scikit_learn(name: str, batch_size: int) -> None:
    x, k = data(name)
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


# Breaks when the estimator that is handed over is fitted otherwise, or not at all.
@pytest.mark.parametrize("dtype", ["float64", "float32", "uint8"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"scale": "zscore"}, {"scale": "minmax"}, {"scale": "l2"}, {"metric": "cosine"}],
)
@pytest.mark.parametrize("estimator", [KMeans, MiniBatchKMeans])
def test_to_sklearn_agrees(estimator: type, settings: dict[str, Any], dtype: str) -> None:
    x = load_digits().data.astype(dtype)
    ours = estimator(10, random_state=0, **settings).fit(x[:1000])
    theirs = ours.to_sklearn()
    assert type(theirs).__module__.startswith("sklearn.")
    agreed = np.mean(theirs.predict(x) == ours.predict(x))
    # Sums of small integers are exact; distances in between are rounded both here and there.
    assert agreed == 1 if dtype != "float32" else agreed > 0.998
    last = theirs[-1] if isinstance(theirs, Pipeline) else theirs
    assert type(last) is getattr(cluster, estimator.__name__)
    assert last.inertia_ == ours.inertia_
    np.testing.assert_array_equal(last.labels_, ours.labels_)
    assert last.n_iter_ == ours.n_iter_
    np.testing.assert_allclose(theirs.transform(x), ours.transform(x), rtol=1e-3, atol=1e-3)
    if last is theirs:
        assert theirs.score(x) == pytest.approx(ours.score(x), rel=1e-5)


def test_to_sklearn_goes_on_with_partial_fit() -> None:
    x = load_digits().data
    ours = MiniBatchKMeans(10, init=x[:10])
    for start in range(0, 1000, 100):
        ours.partial_fit(x[start : start + 100])
    theirs = ours.to_sklearn().set_params(reassignment_ratio=0)
    np.testing.assert_array_equal(theirs.cluster_centers_, ours.cluster_centers_)
    for start in range(1000, len(x), 100):
        ours.partial_fit(x[start : start + 100])
        theirs.partial_fit(x[start : start + 100])
    assert_close(theirs.cluster_centers_, ours.cluster_centers_)
    assert theirs.n_steps_ == ours.n_steps_


# Breaks when a weight is left out of a mean, an inertia or a count of what came before.
@pytest.mark.parametrize("name", DATA_SETS)
def test_weights_are_scikit_learn_s(name: str) -> None:
    x, k = data(name)
    weights = np.random.default_rng(0).exponential(size=len(x))
    theirs = cluster.KMeans(k, init=x[:k], n_init=1, tol=0).fit(x, sample_weight=weights)
    ours = KMeans(k, init=x[:k], tol=0).fit(x, sample_weight=weights)
    assert_close(ours.cluster_centers_, theirs.cluster_centers_)
    np.testing.assert_array_equal(ours.labels_, theirs.labels_)
    assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-11)
    expected = theirs.score(x, sample_weight=weights)
    assert ours.score(x, sample_weight=weights) == pytest.approx(expected, rel=1e-11)

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
