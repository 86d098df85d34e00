"""Quality measures of a clustering, from the sums of one pass; no row is kept or read twice.

Each cluster needs its number of rows, their sum, and sums of their distances to the
nearest and second nearest centroid, which the kernel gives. All is in the scaled
space, and weighted if rows have weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["ClusterSums"]

#: Distances between centroids that are in memory at once: 32 MiB of float64.
TILE_ELEMENTS = 1 << 22


@dataclass
class ClusterSums:
    """Sums that a pass gathers for each cluster, on the host; float64, sizes int64."""

    sizes_K: torch.Tensor
    """Numbers of rows; rows of weight 0 are not counted."""
    masses_K: torch.Tensor
    """Their weights, or their numbers if rows have no weights."""
    sums_KD: torch.Tensor
    """Sums of the rows."""
    sq_distances_K: torch.Tensor
    """Sums of their squared distances to the centroid."""
    distances_K: torch.Tensor
    """Sums of their distances to it."""
    silhouettes_K: torch.Tensor
    """Sums of ``(b - a) / b``; a, b are the distances to the nearest and second nearest
    centroid."""

    @classmethod
    def empty(cls, k: int, n_features: int) -> ClusterSums:
        """Sums of no rows."""
        zeros_FK = torch.zeros((4, k), dtype=torch.float64)
        sums_KD = torch.zeros((k, n_features), dtype=torch.float64)
        return cls(torch.zeros(k, dtype=torch.int64), zeros_FK[0], sums_KD, *zeros_FK[1:])

    def update_(
        self,
        labels_B: torch.Tensor,
        sq_distances_B: torch.Tensor,
        second_sq_distances_B: torch.Tensor,
        sums_KD: torch.Tensor,
        weights_B: torch.Tensor | None,
    ) -> None:
        """Add the rows of a batch, whose own sums are `sums_KD`.

        Rows of label -1 are not counted. All tensors lie on the host, where sums have an order.
        """
        counted_B = labels_B >= 0
        labels_B = labels_B[counted_B]
        sq_B = sq_distances_B[counted_B].double()
        distances_B = sq_B.sqrt()
        # The two distances are computed in different ways: rounding may exchange them.
        second_B = torch.maximum(second_sq_distances_B[counted_B].double().sqrt(), distances_B)
        silhouettes_B = torch.where(second_B > 0, (second_B - distances_B) / second_B, 0)
        # With one centroid there is no second.
        silhouettes_B.masked_fill_(second_B.isinf(), 0)
        mass_B = torch.ones_like(sq_B) if weights_B is None else weights_B[counted_B]
        k = len(self.sizes_K)
        self.sizes_K += torch.bincount(labels_B, minlength=k)
        for total_K, values_B in (
            (self.masses_K, torch.ones_like(sq_B)),
            (self.sq_distances_K, sq_B),
            (self.distances_K, distances_B),
            (self.silhouettes_K, silhouettes_B),
        ):
            total_K += torch.bincount(labels_B, values_B * mass_B, k)
        self.sums_KD += sums_KD

    @property
    def inertia(self) -> float:
        """Sum of the squared distances of rows to their nearest centroids."""
        return float(self.sq_distances_K.sum())

    def simplified_silhouette(self) -> float | None:
        """Mean over rows of ``(b - a) / max(a, b)``; None with fewer than two non-empty clusters.

        a and b are the distances to the nearest and the second nearest centroid, b to screening
        precision (Hruschka, de Castro and Campello 2004; Vendramin, Campello and Hruschka 2010).
        As there, the only row of a cluster counts as 0.
        """
        if int((self.sizes_K > 0).sum()) < 2:
            return None
        total = self.silhouettes_K[self.sizes_K > 1].sum()
        return float(total / self.masses_K.sum())

    def calinski_harabasz(self, centroids_KD: torch.Tensor) -> float | None:
        """Dispersion between clusters over dispersion within them, by degrees of freedom.

        As scikit-learn's ``calinski_harabasz_score`` (Calinski and Harabasz 1974), it is about
        the means of the clusters, even if the centroids lie elsewhere. None with fewer than two
        non-empty clusters, or no more rows than clusters.
        """
        used_K = self.sizes_K > 0
        n_clusters, n_rows = int(used_K.sum()), int(self.sizes_K.sum())
        mass = float(self.masses_K.sum())
        if n_clusters < 2 or n_rows <= n_clusters:
            return None
        masses_K1 = self.masses_K[used_K, None]
        means_KD = self.sums_KD[used_K] / masses_K1
        mean_D = self.sums_KD.sum(dim=0) / mass
        between = float((masses_K1 * (means_KD - mean_D).square()).sum())
        moved = means_KD - centroids_KD[used_K].double()
        within = self.inertia - float((masses_K1 * moved.square()).sum())
        if within <= 0:
            return 1.0  # scikit-learn's value for clusters of equal rows.
        # Degrees of freedom count rows, so that only the ratios of weights matter.
        return between * (n_rows - n_clusters) / (within * (n_clusters - 1))

    def davies_bouldin(self, centroids_KD: torch.Tensor) -> float | None:
        """Mean over clusters of the worst ``(s_i + s_j) / |c_i - c_j|``; less is better.

        s is the mean distance of a cluster's rows to its centroid (Davies and Bouldin 1979).
        Equals scikit-learn's ``davies_bouldin_score`` if centroids are the means of their
        clusters. None with fewer than two non-empty clusters.
        """
        used_K = self.sizes_K > 0
        centres_UD = centroids_KD[used_K].double()
        if len(centres_UD) < 2:
            return None
        spreads_U = self.distances_K[used_K] / self.masses_K[used_K]
        worst_U = torch.empty_like(spreads_U)
        for rows in torch.arange(len(centres_UD)).split(max(TILE_ELEMENTS // len(centres_UD), 1)):
            # (By differences: centroids that lie close together would be taken for one.)
            apart_TU = torch.cdist(
                centres_UD[rows], centres_UD, compute_mode="donot_use_mm_for_euclid_dist"
            )
            # A cluster is not compared with itself nor, as in scikit-learn, with clusters that
            # have the same centroid.
            apart_TU.masked_fill_(apart_TU == 0, torch.inf)
            apart_TU[torch.arange(len(rows)), rows] = torch.inf
            worst_U[rows] = ((spreads_U[rows, None] + spreads_U) / apart_TU).amax(dim=1)
        return float(worst_U.mean())
