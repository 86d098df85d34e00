"""Quality measures of a clustering, from the sums of one pass; no row is kept or read twice.

Each cluster needs its number of rows, their sum, and sums of their distances to the
nearest and second nearest centroid, which the kernel gives. All is in the scaled
space, and weighted if rows have weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from streamkm.clustering.graded_sums import serial_sum, sum_graded_
from streamkm.clustering.ratios import worst_ratios
from streamkm.distributed.world import ALONE
from streamkm.kernels import LEAST_GRADE, add_graded_, graded_total

if TYPE_CHECKING:
    from streamkm.distributed.world import World

__all__ = ["ClusterSums", "RunningClusterSums"]

#: What is added up for each cluster beside its rows, in the order of the fields of `ClusterSums`.
_TOTALS = ("masses_K", "sq_distances_K", "distances_K", "silhouettes_K")
#: Distances between centroids that are in memory at once: 32 MiB of float64.
TILE_ELEMENTS = 1 << 22


class RunningClusterSums:
    """`ClusterSums` while a pass adds to them, on the host.

    They are the same in any order of the batches, and whichever process adds which.
    """

    def __init__(self, k: int, n_features: int) -> None:
        self._sizes_K = torch.zeros(k, dtype=torch.int64)
        self._sums_LKD = torch.zeros((2, k, n_features), dtype=torch.int64)
        self._sums_grades_K = torch.full((k,), LEAST_GRADE)
        # Of each kind one after the other: a size of its own for every number.
        self._totals_LT = torch.zeros((2, len(_TOTALS) * k), dtype=torch.int64)
        self._totals_grades_T = torch.full((len(_TOTALS) * k,), LEAST_GRADE)

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
        k = len(self._sizes_K)
        self._sizes_K += torch.bincount(labels_B, minlength=k)
        values = (torch.ones_like(sq_B), sq_B, distances_B, silhouettes_B)
        totals_T = torch.cat([torch.bincount(labels_B, each * mass_B, k) for each in values])
        add_graded_(self._totals_LT[..., None], self._totals_grades_T, totals_T[:, None])
        add_graded_(self._sums_LKD, self._sums_grades_K, sums_KD)

    def of_all(self, world: World = ALONE) -> ClusterSums:
        """The sums over the rows of all processes of `world`, in each of them.

        Nothing may be added afterwards.
        """
        whole = self._totals_LT[..., None]
        graded = [(self._sums_LKD, self._sums_grades_K), (whole, self._totals_grades_T)]
        sum_graded_(world, graded, self._sizes_K)
        totals_T1 = graded_total(whole, self._totals_grades_T)
        totals = totals_T1.view(len(_TOTALS), -1).unbind()
        sums_KD = graded_total(self._sums_LKD, self._sums_grades_K)
        return ClusterSums(self._sizes_K, sums_KD, *totals)


@dataclass(frozen=True)
class ClusterSums:
    """Sums of each cluster over all rows, on the host; float64, sizes int64."""

    sizes_K: torch.Tensor
    """Numbers of rows; rows of weight 0 are not counted."""
    sums_KD: torch.Tensor
    """Sums of the rows."""
    masses_K: torch.Tensor
    """Their weights, or their numbers if rows have no weights."""
    sq_distances_K: torch.Tensor
    """Sums of their squared distances to the centroid."""
    distances_K: torch.Tensor
    """Sums of their distances to it."""
    silhouettes_K: torch.Tensor
    """Sums of ``(b - a) / b``; a, b are the distances to the nearest and second nearest
    centroid."""

    def expanded(
        self,
        sizes_K: torch.Tensor,
        sums_KD: torch.Tensor,
        masses_K: torch.Tensor,
        inertia: float,
    ) -> ClusterSums:
        """Sums of all rows, of which these are the sums of a sample.

        Given are the sums that are known of all rows. Taken from the sample are the distances of
        each cluster's rows, in the mean; a cluster without a row in it has the mean of all. Squared
        distances are then brought to `inertia`, their sum over all rows.

        Parameters
        ----------
        sizes_K, sums_KD, masses_K : Tensor
            As the fields of these names.
        inertia : float
            The sum of all rows' squared distances.
        """
        sampled_K = self.masses_K > 0
        n_sampled = serial_sum(self.masses_K)

        def of_all(totals_K: torch.Tensor) -> torch.Tensor:
            means_K = totals_K / self.masses_K
            return masses_K * torch.where(sampled_K, means_K, serial_sum(totals_K) / n_sampled)

        sq_distances_K = of_all(self.sq_distances_K)
        found = float(serial_sum(sq_distances_K))
        if found > 0:
            sq_distances_K *= inertia / found
        else:  # Every row of the sample lies on its centroid.
            sq_distances_K = masses_K * (inertia / float(serial_sum(masses_K)))
        silhouettes_K = self.silhouettes_K * (serial_sum(masses_K) / n_sampled)
        return ClusterSums(
            sizes_K, sums_KD, masses_K, sq_distances_K, of_all(self.distances_K), silhouettes_K
        )

    @property
    def inertia(self) -> float:
        """Sum of the squared distances of rows to their nearest centroids."""
        return float(serial_sum(self.sq_distances_K))

    def simplified_silhouette(self) -> float | None:
        """Mean over rows of ``(b - a) / max(a, b)``; None with fewer than two non-empty clusters.

        a and b are the distances to the nearest and the second nearest centroid, b to screening
        precision (Hruschka, de Castro and Campello 2004; Vendramin, Campello and Hruschka 2010).
        As there, the only row of a cluster counts as 0.
        """
        if int((self.sizes_K > 0).sum()) < 2:
            return None
        total = serial_sum(self.silhouettes_K[self.sizes_K > 1])
        return float(total / serial_sum(self.masses_K))

    def calinski_harabasz(self, centroids_KD: torch.Tensor) -> float | None:
        """Dispersion between clusters over dispersion within them, by degrees of freedom.

        As scikit-learn's ``calinski_harabasz_score`` (Calinski and Harabasz 1974), it is about
        the means of the clusters, even if the centroids lie elsewhere. None with fewer than two
        non-empty clusters, or no more rows than clusters.
        """
        n_clusters, n_rows = int((self.sizes_K > 0).sum()), int(self.sizes_K.sum())
        if n_clusters < 2 or n_rows <= n_clusters:
            return None
        between, within = self._dispersions(centroids_KD)
        if within <= 0:
            return 1.0  # scikit-learn's value for clusters of equal rows.
        # Degrees of freedom count rows, so that only the ratios of weights matter.
        return between * (n_rows - n_clusters) / (within * (n_clusters - 1))

    def explained_variance(self, centroids_KD: torch.Tensor) -> float | None:
        """The share of the rows' dispersion that lies between the means of the clusters, in [0, 1].

        With equal weights it is R^2 of the labels. None if all rows are equal.
        """
        between, within = self._dispersions(centroids_KD)
        total = between + max(within, 0.0)
        return between / total if total > 0 else None

    def _dispersions(self, centroids_KD: torch.Tensor) -> tuple[float, float]:
        """Sums of squares between the means of the clusters, and of their rows about the means."""
        used_K = self.sizes_K > 0
        masses_K1 = self.masses_K[used_K, None]
        means_KD = self.sums_KD[used_K] / masses_K1
        mean_D = self.sums_KD.sum(dim=0) / float(serial_sum(self.masses_K))
        between = float(serial_sum(masses_K1 * (means_KD - mean_D).square()))
        moved = means_KD - centroids_KD[used_K].double()
        return between, self.inertia - float(serial_sum(masses_K1 * moved.square()))

    def silhouettes(
        self,
        x_SD: torch.Tensor,
        labels_S: torch.Tensor,
        centroids_KD: torch.Tensor,
        weights_S: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The silhouette of each of some rows among all rows, by squared Euclidean distances.

        With a the mean of the squared distances to the other rows of the own cluster, and b the
        least of those means for other clusters, it is ``(b - a) / max(a, b)`` (Rousseeuw 1987), and
        0 for the only row of a cluster. Means over all rows of a cluster follow from its sums: the
        squared distances of x to rows of mean m are ``|x - m|^2`` in the mean, and as much more as
        the rows are from m. So the mean over all rows equals scikit-learn's
        ``silhouette_score(metric="sqeuclidean")``.

        A row of weight w counts as w rows. The own row is left out of a once, so that whole weights
        give the silhouettes of rows that are repeated as often; a row of less weight than 1 is left
        out with all of it.

        Parameters
        ----------
        x_SD : Tensor of shape (S, D)
            Rows in the scaled space, on the host.
        labels_S : int64 Tensor of shape (S,)
            Their clusters, none -1.
        centroids_KD : Tensor of shape (K, D)
            The centroids that the sums are about.
        weights_S : float64 Tensor of shape (S,), optional
            Their weights, all positive, if rows have weights.

        Returns
        -------
        Tensor of shape (S,)
            float64.
        """
        used_K = self.sizes_K > 0
        place_K = used_K.cumsum(0) - 1
        sizes_U, masses_U = self.sizes_K[used_K], self.masses_K[used_K]
        # About the mean of all rows: far from the origin ``|x|^2 - 2 x.m`` cancels.
        mean_D = self.sums_KD.sum(dim=0) / masses_U.sum()
        means_UD = self.sums_KD[used_K] / masses_U[:, None] - mean_D
        spreads_U = self.sq_distances_K[used_K] / masses_U
        spreads_U -= (centroids_KD[used_K].double() - mean_D - means_UD).square().sum(dim=1)
        beside_U = means_UD.square().sum(dim=1) + spreads_U
        found = []
        tile_rows = max(TILE_ELEMENTS // max(len(sizes_U), x_SD.shape[1]), 1)
        once_S = torch.ones(len(x_SD)) if weights_S is None else weights_S.clamp_max(1)
        tiles = (each.split(tile_rows) for each in (x_SD, labels_S, once_S))
        for x_TD, labels_T, once_T in zip(*tiles, strict=True):
            x_TD = x_TD.double() - mean_D
            lengths_T = x_TD.square().sum(dim=1)
            # Mean squared distances to the rows of each cluster, less the squared length of x.
            apart_TU = torch.addmm(beside_U, x_TD, means_UD.T, alpha=-2)
            own_T1 = place_K[labels_T][:, None]
            own_T = own_T1[:, 0]
            # The only row of a cluster has no others, unless it counts as several.
            masses_T = masses_U[own_T]
            others_T = masses_T - once_T
            is_only_T = (others_T <= 0) | ((sizes_U[own_T] == 1) & (masses_T <= 1))
            a_T = apart_TU.gather(1, own_T1)[:, 0] + lengths_T
            a_T = (a_T * masses_T / others_T.masked_fill_(is_only_T, 1)).clamp_min_(0)
            b_T = apart_TU.scatter_(1, own_T1, torch.inf).amin(dim=1) + lengths_T
            worst_T = torch.maximum(a_T, b_T)
            silhouettes_T = torch.where(worst_T > 0, (b_T - a_T) / worst_T, 0)
            found.append(silhouettes_T.masked_fill_(is_only_T, 0))
        return torch.cat(found)

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
        worst_U = worst_ratios(centres_UD, self.distances_K[used_K] / self.masses_K[used_K])
        return float(serial_sum(worst_U)) / len(worst_U)
