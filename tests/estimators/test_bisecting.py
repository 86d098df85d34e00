"""`BisectingKMeans`; scikit-learn's own tests of it run in test_scikit_learn_suite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from sklearn import cluster
from sklearn.datasets import load_digits, load_iris
from sklearn.exceptions import ConvergenceWarning

from streamkm import BisectingKMeans
from streamkm.errors import ParameterError


# Breaks when another cluster is split than scikit-learn's strategy says, or a split goes on from
# other rows: from the same two rows of each cluster, both find the same hierarchy.
@pytest.mark.parametrize("strategy", ["biggest_inertia", "largest_cluster"])
def test_it_follows_scikit_learn_s(strategy: str) -> None:
    x = load_digits().data

    def init(rows: np.ndarray, n_clusters: int, random_state: Any) -> np.ndarray:
        return rows[[0, len(rows) // 2]]

    settings: dict[str, Any] = {"init": init, "bisecting_strategy": strategy, "tol": 0}
    theirs = cluster.BisectingKMeans(8, **settings).fit(x)
    ours = BisectingKMeans(8, **settings).fit(x)
    np.testing.assert_array_equal(ours.labels_, theirs.labels_)
    np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, atol=1e-9)
    assert ours.inertia_ == pytest.approx(theirs.inertia_)
    new = load_digits().data[::-1] + 0.3
    np.testing.assert_array_equal(ours.predict(new), theirs.predict(new))
    np.testing.assert_allclose(ours.transform(new), theirs.transform(new))
    assert ours.score(new) == pytest.approx(theirs.score(new))


# Breaks when rows go to the nearest of all centroids, and not down the hierarchy.
@pytest.mark.parametrize("kind", ["dense", "csr", "float32"])
def test_the_rows_of_the_fit_get_their_labels(kind: str) -> None:
    x: Any = load_digits().data
    x = {"dense": x, "csr": scipy.sparse.csr_array(x), "float32": x.astype(np.float32)}[kind]
    kmeans = BisectingKMeans(20, random_state=0).fit(x)
    np.testing.assert_array_equal(kmeans.predict(x), kmeans.labels_)
    assert (kmeans.transform(x).argmin(axis=1) != kmeans.labels_).any()


# Breaks when weights are left out of a split, or of the choice of what to split.
@pytest.mark.filterwarnings("error")
def test_a_weight_is_so_many_rows() -> None:
    x = load_iris().data
    weights = np.random.default_rng(0).integers(0, 4, len(x))

    def init(rows: np.ndarray, n_clusters: int, random_state: Any) -> np.ndarray:
        return np.stack([rows.min(axis=0), rows.max(axis=0)])

    weighted = BisectingKMeans(4, init=init).fit(x[weights > 0], sample_weight=weights[weights > 0])
    repeated = BisectingKMeans(4, init=init).fit(np.repeat(x, weights, axis=0))
    np.testing.assert_allclose(weighted.cluster_centers_, repeated.cluster_centers_)
    assert weighted.inertia_ == pytest.approx(repeated.inertia_)


def test_fewer_distinct_rows_than_clusters() -> None:
    x = np.repeat([[0.0], [1.0], [5.0]], 4, axis=0)
    with pytest.warns(ConvergenceWarning, match=r"distinct clusters \(3\) found smaller") as caught:
        kmeans = BisectingKMeans(5, random_state=0).fit(x)
    assert len(caught) == 1
    assert kmeans.inertia_ == 0
    assert len(kmeans.cluster_centers_) == 5


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_clusters": 151}, "n_samples=150 should be >= n_clusters=151"),
        ({"init": np.zeros((2, 4))}, "init must be a name or a callable"),
        ({"bisecting_strategy": "smallest"}, "bisecting_strategy must be one of biggest_inertia"),
    ],
)
def test_wrong_parameters(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        BisectingKMeans(**parameters).fit(load_iris().data)


def test_what_it_does_not_take(tmp_path: Path) -> None:
    x = load_iris().data
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(ParameterError, match="or use KMeans, which streams it"):
        BisectingKMeans(3).fit(tmp_path / "x.npy")
    kmeans = BisectingKMeans(3, random_state=0).fit(x)
    assert kmeans.transform(tmp_path / "x.npy").shape == (150, 3)
    kmeans.cluster_centers_ = kmeans.cluster_centers_ + 1
    with pytest.raises(ParameterError, match="set them on a KMeans"):
        kmeans.predict(x)
    x[3, 1] = np.nan
    with pytest.raises(ValueError, match="row 3 holds nan"):
        BisectingKMeans(3).fit(x)
