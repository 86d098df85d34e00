"""KMeans beside scikit-learn's, from the same centroids."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import cluster
from sklearn.datasets import load_digits, load_iris

from streamkm import KMeans
from tests.data_sets import DataSet, on_data_sets
from tests.estimators.comparison import assert_close


# Breaks when a pass moves the centroids otherwise, ends too early or too late, or labels and
# inertia are not those of the centroids that are returned.
@pytest.mark.parametrize("tol", [0.0, 1e-4])
@on_data_sets
def test_kmeans_follows_lloyd(data: DataSet, tol: float) -> None:
    x, k = data.rows, data.k
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


# Breaks when the reason is not the one that ended the passes, or stays that of an earlier fit.
def test_why_it_stopped() -> None:
    digits = load_digits().data
    kmeans = KMeans(10, init=digits[:10], tol=0).fit(digits)
    assert kmeans.stop_reason_.startswith("converged: no centroid moves any more")
    kmeans.set_params(tol=0.01).fit(digits)
    assert kmeans.stop_reason_ == "the centroid shift fell to tol"
    kmeans.set_params(tol=0, max_iter=3).fit(digits)
    assert kmeans.stop_reason_ == "all epochs are done (3), and centroids still move"


# Breaks when a weight is left out of a mean, an inertia or a count of what came before.
@on_data_sets
def test_weights_are_scikit_learn_s(data: DataSet) -> None:
    x, k = data.rows, data.k
    weights = np.random.default_rng(0).exponential(size=len(x))
    theirs = cluster.KMeans(k, init=x[:k], n_init=1, tol=0).fit(x, sample_weight=weights)
    ours = KMeans(k, init=x[:k], tol=0).fit(x, sample_weight=weights)
    assert_close(ours.cluster_centers_, theirs.cluster_centers_)
    np.testing.assert_array_equal(ours.labels_, theirs.labels_)
    assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-11)
    expected = theirs.score(x, sample_weight=weights)
    assert ours.score(x, sample_weight=weights) == pytest.approx(expected, rel=1e-11)
