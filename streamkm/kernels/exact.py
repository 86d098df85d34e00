"""Rechecks rows that a screen in low precision left in doubt, and distances that cancelled.

A label is certain if the gap between the best and the second best score of the row
exceeds what rounding can do. The few other rows are scored again in float64. Centroids
whose float64 scores are still within rounding of the least are compared by sums of
squared differences, in which nothing cancels; the lowest index wins a tie.

A squared distance from ``|x|^2 - 2 x.c + |c|^2`` keeps few digits, or none, if it is small
beside the squared lengths. If rounding may have changed it by more than a part in
`LEAST_PRECISION`, it is computed anew as a sum of squared differences.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch

from streamkm.kernels.extension import instruction_sets, n_threads_for

__all__ = [
    "can_compile_differences",
    "cancelling_share",
    "compiled_differences",
    "correct_",
    "pair_sq_distances",
    "recheck_",
    "recheck_second_",
    "rounding_bound",
    "rounding_share",
    "screening_slack",
]

#: The rounding errors of a sum of D products behave as a random walk. Bounds allow for this
#: many standard deviations of it, as the contract test of kernels does.
SIGMAS = 4.0
#: An expanded squared distance serves if it is this many times what rounding can do to it. The
#: bound is a wide one: the error is a hundredth in the usual case.
LEAST_PRECISION = 16
#: Elements of float64 scores, or differences, that are in memory at once: 8 MiB.
TILE_ELEMENTS = 1 << 20


def rounding_bound(
    sq_norms_B: torch.Tensor, c_sq_norm: torch.Tensor, n_features: int
) -> torch.Tensor:
    """Bound on the rounding error of each row's scores ``|c|^2 - 2 x.c``, in their dtype.

    `c_sq_norm` is the squared length of the longest centroid that matters, one for all rows
    or one for each.
    """
    extent_B = sq_norms_B.sqrt() + c_sq_norm.sqrt()
    bound_B: torch.Tensor = rounding_share(sq_norms_B.dtype, n_features) * extent_B.square()
    return bound_B


def screening_slack(
    sq_norms_T: torch.Tensor, scores_T: torch.Tensor, largest: torch.Tensor, n_features: int
) -> torch.Tensor:
    """How far above `scores_T` a centroid may score and still be as near as the one that has it.

    A centroid longer than the row and its distance together cannot be so near. So a single
    centroid far away does not make every row uncertain. (The factor 1.1 is there because the score
    is rounded itself.)

    Parameters
    ----------
    sq_norms_T, scores_T : Tensor of shape (T,)
        Squared lengths of rows, and for each the score ``|c|^2 - 2 x.c`` of one centroid.
    largest : Tensor of shape ()
        Squared length of the longest centroid.
    n_features : int
    """
    reach_T = sq_norms_T.sqrt() + (scores_T + sq_norms_T).clamp_min_(0).sqrt_()
    longest_T = torch.minimum(reach_T.square_().mul_(1.1), largest)
    # Below the normal numbers the error of rounding is no longer a share of the result.
    vanished = 4 * n_features * torch.finfo(sq_norms_T.dtype).tiny
    return 2 * rounding_bound(sq_norms_T, longest_T, n_features) + vanished


@lru_cache(maxsize=16)
def rounding_share(dtype: torch.dtype, n_features: int) -> float:
    """`rounding_bound` as a share of ``(|x| + |c|)^2``."""
    return (SIGMAS * math.sqrt(n_features) + 3) * torch.finfo(dtype).eps / 2


def cancelling_share(dtype: torch.dtype, n_features: int) -> float:
    """Share of ``|x|^2 + |c|^2`` below which an expanded squared distance must not be used.

    Of two points that are so near, both have about the same length, and ``(|x| + |c|)^2`` is
    twice this sum.
    """
    return 2 * LEAST_PRECISION * rounding_share(dtype, n_features)


def correct_(
    sq_distances_B: torch.Tensor,
    sq_norms_B: torch.Tensor,
    labels_B: torch.Tensor,
    x_BD: torch.Tensor,
    centroids_KD: torch.Tensor,
) -> None:
    """Compute squared distances to the centroids of `labels_B` anew where they cancelled."""
    share = 2 * cancelling_share(x_BD.dtype, x_BD.shape[1])
    rows = (sq_distances_B < share * sq_norms_B).nonzero().squeeze(1)
    exact = pair_sq_distances(x_BD, centroids_KD, rows, labels_B.index_select(0, rows))
    sq_distances_B[rows] = exact.to(sq_distances_B.dtype)


def recheck_(
    labels_B: torch.Tensor,
    sq_distances_B: torch.Tensor,
    uncertain_B: torch.Tensor,
    x_BD: torch.Tensor,
    centroids_KD: torch.Tensor,
) -> None:
    """Replace label and squared distance of every uncertain row by the true ones, in place.

    Parameters
    ----------
    labels_B, sq_distances_B : Tensor of shape (B,)
        Labels (int64) and squared distances of the screen.
    uncertain_B : bool Tensor of shape (B,)
        Rows to recheck.
    x_BD, centroids_KD : Tensor of shapes (B, D) and (K, D)
        The rows and centroids that were screened.
    """
    rows = uncertain_B.nonzero().squeeze(1)
    if len(rows) == 0:
        return
    wide_KD = centroids_KD.double()
    c_sq_K = wide_KD.square().sum(dim=1)
    for part in rows.split(max(TILE_ELEMENTS // max(centroids_KD.shape), 1)):
        stored_UD = x_BD.index_select(0, part)
        x_UD = stored_UD.double()
        sq_norms_U = x_UD.square().sum(dim=1)
        scores_UK = torch.addmm(c_sq_K, x_UD, wide_KD.T, alpha=-2)
        bound_U = rounding_bound(sq_norms_U, c_sq_K.max(), x_UD.shape[1])
        limit_U = scores_UK.amin(dim=1) + 2 * bound_U
        near, candidates = (scores_UK <= limit_U[:, None]).nonzero(as_tuple=True)
        distances = pair_sq_distances(stored_UD, centroids_KD, near, candidates)
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
    """Replace every uncertain row's squared distance to its second nearest centroid, in place.

    If the label was uncertain, the screen cannot tell the nearest from the second nearest; if
    the distance is a small one, it cancelled.
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


def pair_sq_distances(
    x_BD: torch.Tensor, centroids_KD: torch.Tensor, rows_P: torch.Tensor, columns_P: torch.Tensor
) -> torch.Tensor:
    """Squared distance of each pair of a row and a centroid, float64, by differences.

    By these labels are decided. So they are compiled where there is an extension: every kernel on a
    CPU adds up in one order then, and decides as the others do where two distances are as good as
    equal.
    """
    result_P = torch.empty(len(rows_P), dtype=torch.float64, device=x_BD.device)
    step = max(TILE_ELEMENTS // x_BD.shape[1], 1)
    for start in range(0, len(rows_P), step):
        pairs = slice(start, start + step)
        x_PD, columns = x_BD.index_select(0, rows_P[pairs]), columns_P[pairs]
        if can_compile_differences(x_PD, columns, centroids_KD):
            compiled_differences(x_PD, columns, centroids_KD, result_P[pairs])
            continue
        difference = x_PD.double()
        difference -= centroids_KD.index_select(0, columns)
        result_P[pairs] = difference.square_().sum(dim=1)
    return result_P


def can_compile_differences(
    x_BD: torch.Tensor, labels_B: torch.Tensor, centroids_KD: torch.Tensor
) -> bool:
    """Whether there is compiled code for `compiled_differences` of these tensors."""
    return bool(
        instruction_sets()
        and x_BD.is_cpu
        and x_BD.dtype == centroids_KD.dtype
        and x_BD.dtype in (torch.float32, torch.float64)
        and labels_B.dtype == torch.int64
        and x_BD.shape == (*labels_B.shape, centroids_KD.shape[1])
    )


def compiled_differences(
    x_BD: torch.Tensor, labels_B: torch.Tensor, centroids_KD: torch.Tensor, out_B: torch.Tensor
) -> None:
    """Fill `out_B`, float64, with the squared distance of each row to the centroid of its label.

    A sum of squared differences, in one order whatever the instruction set.
    """
    best = instruction_sets()[0]
    x_BD, labels_B, centroids_KD = (
        x_BD.contiguous(),
        labels_B.contiguous(),
        centroids_KD.contiguous(),
    )
    best.functions.sq_distances(
        best.number,
        x_BD.dtype == torch.float64,
        x_BD.data_ptr(),
        labels_B.data_ptr(),
        centroids_KD.data_ptr(),
        out_B.data_ptr(),
        *x_BD.shape,
        centroids_KD.shape[0],
        n_threads_for(x_BD.numel()),
    )
