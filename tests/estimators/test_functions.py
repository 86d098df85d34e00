"""`k_means` and `kmeans_plusplus`, beside scikit-learn's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn import cluster
from sklearn.datasets import load_digits, load_iris

from streamkm import k_means, kmeans_plusplus
from streamkm.errors import NonFiniteError, ParameterError


# Breaks when an argument is not passed on, or the results come in another order.
def test_k_means_returns_what_scikit_learn_s_does(tmp_path: Path) -> None:
    x = load_digits().data
    settings: dict[str, Any] = {"init": x[:10], "n_init": 1, "return_n_iter": True}
    theirs = cluster.k_means(x, 10, max_iter=7, tol=0, **settings)
    ours = k_means(x, 10, max_iter=7, tol=0, **settings)
    np.testing.assert_allclose(ours[0], theirs[0], atol=1e-12)
    np.testing.assert_array_equal(ours[1], theirs[1])
    assert ours[2:] == (pytest.approx(theirs[2]), theirs[3])
    np.save(tmp_path / "x.npy", x)
    # The labels of rows on disk are a result too.
    on_disk = k_means(tmp_path / "x.npy", 10, max_iter=7, tol=0, **settings)
    np.testing.assert_array_equal(on_disk[1], ours[1])
    assert len(k_means(x, 10, random_state=0, sample_weight=np.arange(len(x)))) == 3


@pytest.mark.parametrize("kind", ["array", "float32", "csr", "path", "bfloat16", "list"])
def test_centers_are_rows(kind: str, tmp_path: Path) -> None:
    x = load_digits().data
    np.save(tmp_path / "x.npy", x)
    given: dict[str, Any] = {
        "array": x,
        "float32": x.astype(np.float32),
        "csr": scipy.sparse.csr_matrix(x),
        "path": tmp_path / "x.npy",
        "bfloat16": torch.from_numpy(x).bfloat16(),
        "list": x.tolist(),
    }
    centers, indices = kmeans_plusplus(given[kind], 10, random_state=0)
    np.testing.assert_array_equal(centers, x[indices])
    assert centers.dtype == (np.float32 if kind in ("float32", "bfloat16") else np.float64)
    assert len(set(indices)) == 10


# Breaks when rows are not drawn by their squared distance, or the best of the draws is not kept.
def test_seeds_are_as_good_as_scikit_learn_s() -> None:
    x = load_digits().data

    def mean_inertia(function: Any, **arguments: Any) -> float:
        found = [function(x, 10, random_state=seed, **arguments)[0] for seed in range(20)]
        return float(
            np.mean([np.square(x[:, None] - c).sum(axis=2).min(axis=1).sum() for c in found])
        )

    theirs, ours = mean_inertia(cluster.kmeans_plusplus), mean_inertia(kmeans_plusplus)
    assert ours < 1.05 * theirs
    assert mean_inertia(kmeans_plusplus, n_local_trials=1) > 1.05 * ours


# Breaks when distances are taken so far from the origin that their digits are lost.
def test_far_from_the_origin(rng: np.random.Generator) -> None:
    x = (1e5 + np.arange(4)[rng.integers(0, 4, 1000)][:, None]).astype(np.float32)
    centers, _ = kmeans_plusplus(x, 4, random_state=0)
    assert sorted(centers[:, 0] - 1e5) == [0, 1, 2, 3]


def test_rows_of_weight_0_are_not_chosen() -> None:
    x, weights = load_iris().data, np.ones(150)
    weights[::2] = 0
    _, indices = kmeans_plusplus(x, 60, random_state=0, sample_weight=weights)
    assert (indices % 2 == 1).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_clusters": 0}, "n_clusters must be a whole number of at least 1; it is 0"),
        ({"n_clusters": 151}, "n_samples=150 should be >= n_clusters=151"),
        ({"n_local_trials": 0}, "n_local_trials must be a whole number"),
        ({"x_squared_norms": np.ones(3)}, "The length of x_squared_norms 3 should be equal"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        kmeans_plusplus(load_iris().data, **{"n_clusters": 3, **arguments})


def test_rows_that_are_not_finite() -> None:
    x = load_iris().data
    x[7, 0] = np.nan
    with pytest.raises(NonFiniteError, match="NaN or infinity in 1 rows"):
        kmeans_plusplus(x, 3)
