"""Figures that follow from centroids, beside scikit-learn and sums over all rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.decomposition import PCA

from streamkm.reports import measures
from streamkm.reports.facts import Clusters, read_run
from streamkm.reports.measures import explained_variance, moments, outliers, project
from tests.runs.helpers import cli


def clusters_of(centroids_KD: np.ndarray, sizes_K: np.ndarray) -> Clusters:
    return Clusters(
        centroids_KD, centroids_KD.astype(np.float32), sizes_K, sizes_K.astype(float), None, None
    )


# Weighted by size, which is to repeat each centroid so often.
@pytest.mark.parametrize("few", [4096, 5])
def test_the_map_is_the_principal_plane_of_the_repeated_centroids(few, rng, monkeypatch) -> None:
    monkeypatch.setattr(measures, "COVARIANCE_FEATURES", few)
    centroids_KD = rng.normal(size=(20, 6)) * [9, 5, 1, 1, 1, 1] + 100
    sizes_K = rng.integers(1, 30, size=20)
    found = project(clusters_of(centroids_KD, sizes_K))
    assert found is not None
    pca = PCA(2).fit(np.repeat(centroids_KD, sizes_K, axis=0))
    np.testing.assert_allclose(found.shares, pca.explained_variance_ratio_, rtol=1e-5)
    expected_KA = pca.transform(centroids_KD)
    for mine, theirs in zip(found.at_KA.T, expected_KA.T, strict=True):
        np.testing.assert_allclose(mine, theirs * np.sign(mine @ theirs), atol=1e-4)


@pytest.mark.parametrize(
    "centroids_KD", [np.eye(2, 5), np.ones((4, 5)), np.arange(4.0)[:, None]], ids=str
)
def test_there_is_no_map_where_there_is_no_plane(centroids_KD) -> None:
    assert project(clusters_of(centroids_KD, np.ones(len(centroids_KD), int))) is None


def test_a_map_of_clusters_without_rows_counts_each_once(rng) -> None:
    centroids_KD = rng.normal(size=(6, 3))
    empty, even = (project(clusters_of(centroids_KD, n * np.ones(6, int))) for n in (0, 1))
    assert empty is not None
    assert even is not None
    np.testing.assert_array_equal(empty.at_KA, even.at_KA)


# In the scaled space, whatever was done to the features, and for centroids that are no means.
@pytest.mark.parametrize(
    "options", [(), ("--scale", "zscore"), ("--scale", "l2"), ("--metric", "cosine")], ids=str
)
def test_explained_variance_is_that_of_the_rows(options, tmp_path: Path, rng) -> None:
    x = rng.normal(size=(300, 3)) + rng.integers(4, size=(300, 1)) * 3 + 1
    np.save(tmp_path / "x.npy", x)
    run = tmp_path / "run"
    assert cli("fit", tmp_path / "x.npy", "--k", 4, "--out", run, *options) == 0
    assert cli("predict", run, tmp_path / "x.npy", "--labels", tmp_path / "l.npy") == 0
    facts = read_run(run)
    assert facts.model is not None
    assert facts.clusters is not None
    if "zscore" in options:
        x = (x - x.mean(axis=0)) / x.std(axis=0)
    elif options:
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
    labels = np.load(tmp_path / "l.npy")
    means = np.array([x[labels == k].mean(axis=0) for k in range(4)])
    total = np.square(x - x.mean(axis=0)).sum()
    within = np.square(x - means[labels]).sum()
    found = explained_variance(facts.clusters)
    assert found == pytest.approx(1 - within / total, rel=2e-3)


def test_moments_are_weighted_and_taken_in_blocks(rng, monkeypatch) -> None:
    monkeypatch.setattr(measures, "BLOCK_ELEMENTS", 10)
    points_KD, masses_K = rng.normal(size=(9, 4)) + 5, rng.uniform(size=9)
    mean_D, deviation_D = moments(points_KD, masses_K)
    expected_D = np.average(points_KD, axis=0, weights=masses_K)
    np.testing.assert_allclose(mean_D, expected_D)
    variance_D = np.average(np.square(points_KD - expected_D), axis=0, weights=masses_K)
    np.testing.assert_allclose(deviation_D, np.sqrt(variance_D))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([*range(10, 20), 100], [10]),
        ([*range(10, 20), -60, np.nan], [10]),
        ([1.0] * 12 + [5], []),  # Most are equal: how far is far is not known.
        ([1, 2, 3, 100], []),  # Too few.
    ],
)
def test_outliers_are_far_from_the_median(values, expected) -> None:
    assert np.flatnonzero(outliers(np.array(values, float))).tolist() == expected
