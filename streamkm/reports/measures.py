"""Figures that follow from centroids and sizes: explained variance, a projection, outliers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from sklearn.utils.extmath import randomized_svd

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamkm.reports.facts import Clusters

__all__ = ["Projection", "explained_variance", "moments", "outliers", "project"]

#: Features up to which the covariance is made as a whole: 128 MiB.
COVARIANCE_FEATURES = 4096
#: Numbers of centroids that are widened to float64 at once: 32 MiB.
BLOCK_ELEMENTS = 1 << 22
#: A modified z-score beyond which a value is an outlier (Iglewicz and Hoaglin 1993).
OUTLYING = 3.5
#: Values without which no outlier is named: the spread of fewer is not known.
FEWEST = 8


@dataclass(frozen=True)
class Projection:
    """Centroids on the plane that shows most of their variance."""

    at_KA: np.ndarray
    """Coordinates of each centroid, float64, in the unit of distances."""
    shares: tuple[float, float]
    """Share of the variance between clusters along each axis."""
    axes_AD: np.ndarray
    """Unit vectors of the two axes, in the scaled space."""

    @property
    def share(self) -> float:
        """Share of the variance between clusters that the plane shows."""
        return sum(self.shares)


def _blocks(k: int, n_features: int) -> Iterator[slice]:
    rows = max(BLOCK_ELEMENTS // n_features, 1)
    return (slice(start, start + rows) for start in range(0, k, rows))


def moments(points_KD: np.ndarray, masses_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each feature between points, each weighted by its mass."""
    weights_K = masses_K if masses_K.sum() else np.ones(len(masses_K))
    weights_K = weights_K / weights_K.sum()
    mean_D = weights_K @ points_KD
    variance_D = np.zeros(len(mean_D))
    for block in _blocks(*points_KD.shape):
        variance_D += weights_K[block] @ np.square(points_KD[block] - mean_D)
    return mean_D, np.sqrt(variance_D)


def explained_variance(clusters: Clusters) -> float | None:
    """Share of the variance of the rows that lies between clusters; None if it is not known.

    The sum of squares about the mean of all rows is that of the means of the clusters, plus that
    of the rows about the means. The latter is the inertia, less what the centroids are off the
    means, as with the cosine metric.
    """
    means_KD, masses_K = clusters.means_KD, clusters.masses_K
    if means_KD is None or clusters.inertia is None or not masses_K.sum():
        return None
    mean_D = masses_K @ means_KD / masses_K.sum()
    between = within = 0.0
    for block in _blocks(*means_KD.shape):
        mass_B, mean_BD = masses_K[block], means_KD[block]
        between += float(mass_B @ np.square(mean_BD - mean_D).sum(axis=1))
        off_B = np.square(mean_BD - clusters.centroids_KD[block]).sum(axis=1)
        within -= float(mass_B @ off_B)
    within = max(within + clusters.inertia, 0.0)
    return between / (between + within) if between + within else None


def project(clusters: Clusters) -> Projection | None:
    """The centroids on their two principal axes, each weighted by the mass of its cluster.

    None if there are fewer than three centroids that differ, or features: then there is no plane
    to choose.
    """
    centroids_KD, weights_K = clusters.centroids_KD, clusters.masses_K
    k, n_features = centroids_KD.shape
    if not weights_K.sum():
        weights_K = np.ones(k)
    weights_K = weights_K / weights_K.sum()
    mean_D = weights_K @ centroids_KD
    if k < 3 or n_features < 2:
        return None
    if n_features <= COVARIANCE_FEATURES:
        covariance_DD = np.zeros((n_features, n_features))
        for block in _blocks(k, n_features):
            off_BD = centroids_KD[block] - mean_D
            covariance_DD += (off_BD * weights_K[block, None]).T @ off_BD
        variances_D, vectors_DD = np.linalg.eigh(covariance_DD)
        variance_A, axes_AD = variances_D[:-3:-1], vectors_DD.T[:-3:-1]
        total = float(np.trace(covariance_DD))
    else:
        off_KD = ((centroids_KD - mean_D) * np.sqrt(weights_K)[:, None]).astype(np.float32)
        _, values_A, axes_AD = randomized_svd(off_KD, 2, random_state=0)
        variance_A, total = np.square(values_A, dtype=float), float(np.square(off_KD).sum())
    if not total > 0:
        return None
    # The sign of an axis is arbitrary: its longest component is made positive.
    longest_A = np.take_along_axis(axes_AD, np.abs(axes_AD).argmax(axis=1)[:, None], axis=1)
    axes_AD = axes_AD * np.where(longest_A < 0, -1, 1)
    shares = np.clip(variance_A / total, 0, 1)
    at_KA = centroids_KD @ axes_AD.T - mean_D @ axes_AD.T
    return Projection(at_KA, (float(shares[0]), float(shares[1])), axes_AD)


def outliers(values_K: np.ndarray) -> np.ndarray:
    """Which of the finite values lie far from the median, by their median absolute deviation."""
    is_known_K = np.isfinite(values_K)
    if is_known_K.sum() < FEWEST:
        return np.zeros(len(values_K), bool)
    off_K = values_K - np.median(values_K[is_known_K])
    deviation = np.median(np.abs(off_K[is_known_K]))
    # 0.6745 makes it a standard deviation of normally distributed values.
    is_far_K: np.ndarray = is_known_K & (0.6745 * np.abs(off_K) > OUTLYING * deviation)
    return is_far_K if deviation else np.zeros(len(values_K), bool)
