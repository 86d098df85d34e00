"""Measures of quality from sums, beside scikit-learn's from all rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics

from streamkm.clustering.metrics import ClusterSums, RunningClusterSums


def gathered(x_ND, centroids_KD, weights_N=None, batch_rows=37) -> tuple[ClusterSums, np.ndarray]:
    """Sums over batches, and the labels."""
    distances_NK = np.linalg.norm(x_ND[:, None] - centroids_KD[None], axis=2)
    labels_N, ordered_NK = distances_NK.argmin(axis=1), np.sort(distances_NK, axis=1)
    k, n_features = centroids_KD.shape
    found = RunningClusterSums(k, n_features)
    for start in range(0, len(x_ND), batch_rows):
        part = slice(start, start + batch_rows)
        weights_B = np.ones(len(x_ND))[part] if weights_N is None else weights_N[part]
        sums_KD = np.zeros((k, n_features))
        np.add.at(sums_KD, labels_N[part], x_ND[part] * weights_B[:, None])
        second_B = ordered_NK[part, 1] if k > 1 else np.full(len(weights_B), np.inf)
        found.update_(
            torch.from_numpy(np.where(weights_B > 0, labels_N[part], -1)),
            torch.from_numpy(ordered_NK[part, 0] ** 2),
            torch.from_numpy(second_B**2),
            torch.from_numpy(sums_KD),
            None if weights_N is None else torch.from_numpy(weights_B),
        )
    return found.of_all(), labels_N


def blobs(rng) -> np.ndarray:
    return np.concatenate([rng.normal(at, 1.0, (60, 3)) for at in (-4.0, 0.0, 5.0)])


# Breaks when a dispersion is taken about the centroids instead of the means, or the reverse.
def test_indices_are_scikit_learn_s(rng) -> None:
    x_ND = blobs(rng)
    centroids_KD = x_ND[[3, 70, 130, 150]]
    found, labels_N = gathered(x_ND, centroids_KD)
    assert found.calinski_harabasz(torch.from_numpy(centroids_KD)) == pytest.approx(
        metrics.calinski_harabasz_score(x_ND, labels_N), rel=1e-10
    )
    # Lloyd's fixed point, where centroids are the means.
    for _ in range(30):
        _, labels_N = gathered(x_ND, centroids_KD)
        centroids_KD = np.stack([x_ND[labels_N == j].mean(axis=0) for j in range(4)])
    found, labels_N = gathered(x_ND, centroids_KD)
    assert found.davies_bouldin(torch.from_numpy(centroids_KD)) == pytest.approx(
        metrics.davies_bouldin_score(x_ND, labels_N), rel=1e-10
    )


def test_silhouettes_by_hand() -> None:
    # Distances 1 and 3, 0 and 4, 1 and 5; the last row is alone and counts as 0.
    x_ND = np.array([[1.0], [0.0], [-1.0], [4.0]])
    found, _ = gathered(x_ND, np.array([[0.0], [4.0]]), batch_rows=3)
    assert found.simplified_silhouette() == pytest.approx((2 / 3 + 1 + 4 / 5) / 4)


# Breaks when weights enter one sum and not another: a row that weighs 3 is three rows.
def test_weights_are_repetitions(rng) -> None:
    x_ND, times = blobs(rng), rng.integers(0, 4, 180)
    centroids_KD = x_ND[[3, 70, 130]]
    weighted, _ = gathered(x_ND, centroids_KD, times.astype(float))
    repeated, _ = gathered(x_ND.repeat(times, axis=0), centroids_KD)
    centres_KD = torch.from_numpy(centroids_KD)
    assert weighted.simplified_silhouette() == pytest.approx(repeated.simplified_silhouette())
    assert weighted.davies_bouldin(centres_KD) == pytest.approx(repeated.davies_bouldin(centres_KD))
    # Its degrees of freedom are of rows that are there.
    expected = repeated.calinski_harabasz(centres_KD)
    assert expected is not None
    expected *= (np.count_nonzero(times) - 3) / (times.sum() - 3)
    assert weighted.calinski_harabasz(centres_KD) == pytest.approx(expected)
    for scale in (1e-4, 1e4):
        scaled, _ = gathered(x_ND, centroids_KD, scale * times)
        assert scaled.calinski_harabasz(centres_KD) == pytest.approx(expected)


# Breaks when an empty cluster, or a pair at no distance, is divided by.
def test_clusters_without_rows_and_equal_centroids(rng) -> None:
    x_ND = blobs(rng)
    used_KD = x_ND[[3, 70]]
    more_KD = np.concatenate((used_KD, used_KD[:1], [[1e6] * 3]))
    (found, _), (expected, _) = gathered(x_ND, more_KD), gathered(x_ND, used_KD)
    for name in ("calinski_harabasz", "davies_bouldin"):
        value = getattr(found, name)(torch.from_numpy(more_KD))
        assert value == pytest.approx(getattr(expected, name)(torch.from_numpy(used_KD)))


@pytest.mark.parametrize("x_ND", [np.zeros((0, 2)), np.ones((5, 2))], ids=["no rows", "one place"])
def test_fewer_than_two_clusters_have_no_measure(x_ND) -> None:
    centroids_KD = np.array([[1.0, 1.0]])
    found, _ = gathered(x_ND, centroids_KD)
    centres_KD = torch.from_numpy(centroids_KD)
    assert found.simplified_silhouette() is None
    assert found.calinski_harabasz(centres_KD) is None
    assert found.davies_bouldin(centres_KD) is None


# Breaks when equal rows give 0 / 0.
def test_clusters_of_equal_rows() -> None:
    x_ND = np.array([[0.0], [0.0], [2.0], [2.0]])
    centroids_KD = np.array([[0.0], [2.0]])
    found, labels_N = gathered(x_ND, centroids_KD)
    centres_KD = torch.from_numpy(centroids_KD)
    assert found.simplified_silhouette() == 1
    assert found.calinski_harabasz(centres_KD) == metrics.calinski_harabasz_score(x_ND, labels_N)
    assert found.davies_bouldin(centres_KD) == 0


# Breaks when sums of a cluster are not those of all its rows, or cancel far from the origin.
@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_squared_silhouettes_are_scikit_learn_s(rng, shift: float) -> None:
    x_ND = blobs(rng) + shift
    # One cluster of a single row; centroids that are no means, and one without rows.
    centroids_KD = np.concatenate([x_ND[[3, 70, 130]], [[900.0 + shift] * 3, [-900.0] * 3]])
    x_ND = np.concatenate([x_ND, [[890.0 + shift] * 3]])
    found, labels_N = gathered(x_ND, centroids_KD)
    some = np.arange(0, len(x_ND), 3)
    silhouettes = found.silhouettes(
        torch.from_numpy(x_ND[some]),
        torch.from_numpy(labels_N[some]),
        torch.from_numpy(centroids_KD),
    )
    expected = metrics.silhouette_samples(x_ND, labels_N, metric="sqeuclidean")
    assert silhouettes.numpy() == pytest.approx(expected[some], rel=1e-6, abs=1e-9)


# Breaks when a row that weighs 3 is not three rows, of which one is left out beside itself.
def test_squared_silhouettes_with_weights(rng) -> None:
    x_ND = np.concatenate([blobs(rng), [[40.0] * 3], [[-40.0] * 3]])
    times = np.concatenate([rng.integers(0, 4, 180), [1, 3]])
    # Clusters of one row, which counts once and three times.
    centroids_KD = np.concatenate([x_ND[[3, 70, 130]], x_ND[-2:]])

    def silhouettes(scale: float) -> tuple[np.ndarray, np.ndarray]:
        weights_N = times * scale
        found, labels_N = gathered(x_ND, centroids_KD, weights_N)
        rows, labels, weights = (
            torch.from_numpy(each[times > 0]) for each in (x_ND, labels_N, weights_N)
        )
        values = found.silhouettes(rows, labels, torch.from_numpy(centroids_KD), weights)
        return values.numpy(), labels_N

    values, labels_N = silhouettes(1.0)
    repeated, of_repeated = x_ND.repeat(times, axis=0), labels_N.repeat(times)
    expected = metrics.silhouette_samples(repeated, of_repeated, metric="sqeuclidean")
    assert values.repeat(times[times > 0]) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert (values[-2], values[-1]) == (0, 1)
    # Of weights far below 1 no row has others of its own kind.
    tiny, tinier = silhouettes(1e-6)[0], silhouettes(1e-9)[0]
    assert tiny == pytest.approx(tinier, abs=1e-9)
    assert tiny[:-1] == pytest.approx(values[:-1], abs=0.1)
    assert tiny[-1] == 0


# Breaks when what a sample lacks is taken for 0, or what is known of all rows for unknown.
def test_sums_of_a_sample_are_expanded() -> None:
    # Squared distances 1 and 3 in the mean of the two clusters that have rows in it.
    x_ND = np.array([[1.0], [-1.0], [12.0], [9.0], [8.0]])
    x_ND[2:, 0] = [10 + 3**0.5, 10 - 3**0.5, 10 + 3**0.5]
    sample, _ = gathered(x_ND, np.array([[0.0], [10.0], [100.0]]))
    sizes_K, masses_K = torch.tensor([10, 20, 5]), torch.tensor([10.0, 20, 5]).double()
    sums_KD = torch.tensor([[1.0], [200.0], [500.0]]).double()
    found = sample.expanded(sizes_K, sums_KD, masses_K, inertia=162.0)
    mean = (1 * 2 + 3 * 3) / 5
    before = torch.tensor([10 * 1, 20 * 3, 5 * mean]).double()
    torch.testing.assert_close(found.sq_distances_K, before * (162 / float(before.sum())))
    mean = (2 + 3 * 3**0.5) / 5
    torch.testing.assert_close(
        found.distances_K, torch.tensor([10, 20 * 3**0.5, 5 * mean]).double()
    )
    assert found.inertia == pytest.approx(162)
    assert found.simplified_silhouette() == pytest.approx(sample.simplified_silhouette())
    assert found.sums_KD is sums_KD
    # Rows that all lie on their centroids leave the inertia to others, each alike.
    exact, _ = gathered(np.zeros((4, 1)), np.array([[0.0], [10.0], [100.0]]))
    spread = exact.expanded(sizes_K, sums_KD, masses_K, inertia=35.0)
    assert spread.sq_distances_K.tolist() == pytest.approx([10, 20, 5])


# Breaks when the variance is taken about the centroids instead of the means.
def test_explained_variance_is_that_of_the_means(rng) -> None:
    x_ND = blobs(rng)
    centroids_KD = x_ND[[3, 70, 130, 150]]
    found, labels_N = gathered(x_ND, centroids_KD)
    means_KD = np.stack([x_ND[labels_N == j].mean(axis=0) for j in range(4)])
    expected = metrics.r2_score(x_ND, means_KD[labels_N], multioutput="variance_weighted")
    assert found.explained_variance(torch.from_numpy(centroids_KD)) == pytest.approx(expected)
    equal, _ = gathered(np.ones((5, 2)), np.ones((1, 2)))
    assert equal.explained_variance(torch.ones(1, 2)) is None
