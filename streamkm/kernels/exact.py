"""Labels that are exact although distances were screened in low precision.

A screening gives each row its best score and the distance to the second best.
Where that gap exceeds what rounding can do, the label is certain. The few other
rows are scored again in float64; where even that leaves several centroids
within rounding of each other, their distances are taken as sums of squared
differences, in which nothing cancels, and the lowest index wins a tie.
"""

from __future__ import annotations

import math

import torch

__all__ = ["recheck_", "recheck_second_", "rounding_bound", "rounding_share"]

#: Rounding errors of a sum of D products behave as a random walk: so many
#: standard deviations of it are allowed for, as in the kernels' contract test.
SIGMAS = 4.0
#: Elements of the float64 scores, or differences, that are made at once.
TILE_ELEMENTS = 1 << 20


def rounding_bound(
    sq_norms_B: torch.Tensor, c_sq_norm: torch.Tensor, n_features: int
) -> torch.Tensor:
    """What rounding may have done to each row's scores ``|c|^2 - 2 x.c``, in their dtype.

    `c_sq_norm` is the squared length of the longest centroid that matters, for all
    rows or for each.
    """
    extent_B = sq_norms_B.sqrt() + c_sq_norm.sqrt()
    bound_B: torch.Tensor = rounding_share(sq_norms_B.dtype, n_features) * extent_B.square()
    return bound_B


def rounding_share(dtype: torch.dtype, n_features: int) -> float:
    """The same bound as a share of ``(|x| + |c|)^2``."""
    return (SIGMAS * math.sqrt(n_features) + 3) * torch.finfo(dtype).eps / 2


def recheck_(
    labels_B: torch.Tensor,
    sq_distances_B: torch.Tensor,
    uncertain_B: torch.Tensor,
    x_BD: torch.Tensor,
    centroids_KD: torch.Tensor,
) -> None:
    """Put the true label and squared distance of every uncertain row in place.

    Parameters
    ----------
    labels_B, sq_distances_B : Tensor of shape (B,)
        Labels (int64) and squared distances of the screening.
    uncertain_B : Tensor of shape (B,), bool
        Rows to look at again.
    x_BD, centroids_KD : Tensor of shapes (B, D) and (K, D)
        What was screened.
    """
    rows = uncertain_B.nonzero().squeeze(1)
    if len(rows) == 0:
        return
    centroids_KD = centroids_KD.double()
    c_sq_K = centroids_KD.square().sum(dim=1)
    for part in rows.split(max(TILE_ELEMENTS // max(centroids_KD.shape), 1)):
        x_UD = x_BD.index_select(0, part).double()
        sq_norms_U = x_UD.square().sum(dim=1)
        scores_UK = torch.addmm(c_sq_K, x_UD, centroids_KD.T, alpha=-2)
        bound_U = rounding_bound(sq_norms_U, c_sq_K.max(), x_UD.shape[1])
        limit_U = scores_UK.amin(dim=1) + 2 * bound_U
        near, candidates = (scores_UK <= limit_U[:, None]).nonzero(as_tuple=True)
        distances = _pair_distances(x_UD, centroids_KD, near, candidates)
        least_U = torch.full_like(sq_norms_U, torch.inf)
        least_U.scatter_reduce_(0, near, distances, "amin")
        is_least = distances == least_U.index_select(0, near)
        chosen_U = torch.full_like(part, len(centroids_KD))
        chosen_U.scatter_reduce_(0, near[is_least], candidates[is_least], "amin")
        labels_B[part] = chosen_U
        sq_distances_B[part] = least_U.to(sq_distances_B.dtype)


def recheck_second_(
    second_sq_distances_B: torch.Tensor,
    uncertain_B: torch.Tensor,
    x_BD: torch.Tensor,
    centroids_KD: torch.Tensor,
) -> None:
    """Put the squared distance of the second nearest centroid of every uncertain row in place.

    Where the label was uncertain the screening cannot say which of its two is the second.
    """
    rows = uncertain_B.nonzero().squeeze(1)
    centroids_KD = centroids_KD.double()
    for part in rows.split(max(TILE_ELEMENTS // max(centroids_KD.shape), 1)):
        distances_UK = torch.cdist(
            x_BD.index_select(0, part).double(),
            centroids_KD,
            compute_mode="donot_use_mm_for_euclid_dist",
        )
        if len(centroids_KD) > 1:
            nearest_UT = distances_UK.topk(2, dim=1, largest=False).values
            second_sq_distances_B[part] = nearest_UT[:, 1].square().to(second_sq_distances_B.dtype)


def _pair_distances(
    x_UD: torch.Tensor, centroids_KD: torch.Tensor, rows_P: torch.Tensor, columns_P: torch.Tensor
) -> torch.Tensor:
    """Squared distance of each pair of a row and a centroid, float64."""
    result_P = torch.empty(len(rows_P), dtype=torch.float64, device=x_UD.device)
    step = max(TILE_ELEMENTS // x_UD.shape[1], 1)
    for start in range(0, len(rows_P), step):
        pairs = slice(start, start + step)
        difference = x_UD.index_select(0, rows_P[pairs])
        difference -= centroids_KD.index_select(0, columns_P[pairs])
        result_P[pairs] = difference.square_().sum(dim=1)
    return result_P
