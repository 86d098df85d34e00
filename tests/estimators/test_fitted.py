"""``cluster_centers_`` and ``counts_`` are what counts, also where a user sets them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn import cluster

from streamkm import KMeans, MiniBatchKMeans
from streamkm.clustering.scaling import Scaling
from streamkm.errors import ParameterError

BOTH = [KMeans, MiniBatchKMeans]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"scale": "zscore"},
    {"scale": "minmax"},
    {"scale": "l2"},
    {"metric": "cosine"},
]


def blobs(n_rows: int = 600, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return 10 * rng.normal(size=(6, 5))[rng.integers(0, 6, n_rows)] + rng.normal(size=(n_rows, 5))


# Breaks when anything is computed by what cluster_centers_ were before.
@pytest.mark.parametrize("estimator", BOTH)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("in_place", [False, True])
def test_clusters_numbered_anew(estimator: type, settings: dict[str, Any], in_place: bool) -> None:
    x = blobs()
    kmeans = estimator(6, random_state=0, **settings).fit(x)
    labels, distances, score = kmeans.labels_, kmeans.transform(x), kmeans.score(x)
    order = np.array([3, 1, 0, 5, 2, 4])
    if in_place:
        kmeans.cluster_centers_[:] = kmeans.cluster_centers_[order]
    else:
        kmeans.cluster_centers_ = kmeans.cluster_centers_[order]
    np.testing.assert_array_equal(order[kmeans.predict(x)], labels)
    np.testing.assert_allclose(kmeans.transform(x), distances[:, order], atol=1e-9)
    assert kmeans.score(x) == pytest.approx(score, rel=1e-12)
    np.testing.assert_array_equal(order[kmeans.to_sklearn().predict(x)], labels)


# Breaks when a set centroid starts from its old sum, or forgets how many rows it stands for.
def test_partial_fit_goes_on_from_set_centroids() -> None:
    x = blobs()
    theirs = cluster.MiniBatchKMeans(6, init=x[:6], n_init=1, reassignment_ratio=0)
    ours = MiniBatchKMeans(6, init=x[:6])
    for kmeans in (theirs, ours):
        kmeans.partial_fit(x[:300])
        kmeans.cluster_centers_ = kmeans.cluster_centers_ + 1
        kmeans.partial_fit(x[300:])
    np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, rtol=1e-12)
    np.testing.assert_array_equal(ours.counts_, theirs._counts)


@pytest.mark.parametrize("weights", [None, 2.0])
def test_partial_fit_goes_on_from_set_counts(weights: float | None) -> None:
    x = np.array([[0.0], [2.0], [100.0]])
    kmeans = MiniBatchKMeans(2, init=[[0.0], [100.0]]).partial_fit(x, sample_weight=weights)
    kmeans.counts_[:] = [1, 1]
    kmeans.partial_fit([[3.0]])
    assert kmeans.cluster_centers_.tolist() == [[2.0], [100.0]]  # (1 x 1 + 3) / 2
    assert kmeans.counts_.tolist() == [2, 1]


# Breaks when a change that changes nothing moves the last bits.
def test_equal_centroids_are_no_change() -> None:
    x = blobs()
    touched = MiniBatchKMeans(6, random_state=0, scale="l2").partial_fit(x[:300])
    plain = MiniBatchKMeans(6, random_state=0, scale="l2").partial_fit(x[:300])
    touched.cluster_centers_ = touched.cluster_centers_.copy()
    for kmeans in (touched, plain):
        kmeans.partial_fit(x[300:])
    np.testing.assert_array_equal(touched.cluster_centers_, plain.cluster_centers_)


@pytest.mark.parametrize("estimator", BOTH)
def test_set_on_an_unfitted_estimator(estimator: type) -> None:
    x = blobs()
    kmeans = estimator(6)
    kmeans.cluster_centers_ = x[:6].copy()
    nearest = np.square(x[:, None] - x[:6]).sum(axis=2)
    np.testing.assert_array_equal(kmeans.predict(x), nearest.argmin(axis=1))
    np.testing.assert_allclose(kmeans.transform(x), np.sqrt(nearest), atol=1e-6)
    assert kmeans.score(x) == pytest.approx(-nearest.min(axis=1).sum())
    kmeans.set_params(scale="zscore")
    with pytest.raises(ParameterError, match="do not say how scale='zscore' scales rows"):
        kmeans.predict(x)


def test_partial_fit_from_set_centroids_alone() -> None:
    kmeans = MiniBatchKMeans(2)
    kmeans.cluster_centers_ = np.array([[0.0], [10.0]])
    kmeans.partial_fit([[1.0], [3.0]])
    assert kmeans.cluster_centers_.tolist() == [[2.0], [10.0]]
    assert kmeans.counts_.tolist() == [2, 0]


@pytest.mark.parametrize("estimator", BOTH)
def test_fewer_centroids(estimator: type) -> None:
    x = blobs()
    kmeans = estimator(6, random_state=0).fit(x)
    kmeans.cluster_centers_ = kmeans.cluster_centers_[:4]
    assert set(kmeans.predict(x)) == {0, 1, 2, 3}
    assert kmeans.get_feature_names_out().tolist() == [
        f"{estimator.__name__.lower()}{i}" for i in range(4)
    ]
    if estimator is MiniBatchKMeans:
        with pytest.raises(ParameterError, match="4 rows and counts_ 6: set counts_ as well"):
            kmeans.partial_fit(x)
        kmeans.counts_ = np.zeros(4, int)
        kmeans.partial_fit(x)
        assert kmeans.counts_.sum() == len(x)


@pytest.mark.parametrize("estimator", BOTH)
def test_what_no_centroids_can_be(estimator: type) -> None:
    x = blobs()
    kmeans = estimator(6, random_state=0).fit(x)
    kmeans.cluster_centers_ = kmeans.cluster_centers_[:, :3]
    with pytest.raises(ParameterError, match="must have the 5 features of the rows"):
        kmeans.predict(x)
    kmeans.fit(x).cluster_centers_[0, 0] = np.nan
    with pytest.raises(ValueError, match="cluster_centers_ contains NaN"):
        kmeans.predict(x)
    kmeans.fit(x).counts_ = np.full(6, 0.5)
    with pytest.raises(ParameterError, match="counts_ must be 6 whole numbers"):
        kmeans.predict(x)
    assert (kmeans.fit(x).predict(x) == kmeans.labels_).all()


# Breaks when each call of predict turns back centroids that were never scaled: torch's threads
# do that, and on cores that others use they take as long to wake as 32,768 rows take.
def test_predict_turns_back_no_centroids_that_were_not_scaled(monkeypatch, rng) -> None:
    x = rng.normal(size=(200, 3))
    plain, scaled = (KMeans(4, random_state=0, scale=how).fit(x) for how in ("none", "zscore"))
    labels = plain.predict(x)
    monkeypatch.setattr(Scaling, "inverse", lambda *_: pytest.fail("turned back"))
    assert np.array_equal(plain.predict(x), labels)
    with pytest.raises(pytest.fail.Exception, match="turned back"):
        scaled.predict(x)
