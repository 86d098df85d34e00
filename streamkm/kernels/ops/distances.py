"""Squared distances: of all rows to a few points, and of each row to one known centroid.

Those to a known centroid are sums of squared differences, in which nothing cancels. The others
come from ``|x|^2 - 2 x.c + |c|^2``, and where that cancels from differences too.
"""

from __future__ import annotations

import torch

from streamkm.kernels.exact import (
    can_compile_differences,
    cancelling_share,
    compiled_differences,
    pair_sq_distances,
)
from streamkm.kernels.extension import address, can_weigh, instruction_sets, n_threads_for

__all__ = ["sq_distances_between", "sq_distances_to", "sq_distances_with"]

#: Elements of differences that torch has in memory at once.
TILE_ELEMENTS = {"cpu": 1 << 20, "cuda": 64 << 20}


def sq_distances_between(
    points_LD: torch.Tensor, x_SD: torch.Tensor, sq_norms_S: torch.Tensor
) -> torch.Tensor:
    """Squared distances of a few points to all rows, shape (L, S), never negative.

    They come from ``|x|^2 - 2 x.c + |c|^2``, where `sq_norms_S` are the squared lengths of the
    rows; small ones, in which most digits cancel, are sums of squared differences.
    The compiled code exists because a matrix product with one side of a few rows is bound by
    memory, for which libraries of matrix products are not made.
    """
    if _can_compare(points_LD, x_SD, sq_norms_S):
        return _compare(points_LD, x_SD, sq_norms_S)
    distances_LS = torch.addmm(sq_norms_S, points_LD, x_SD.T, alpha=-2)
    point_norms_L1 = torch.linalg.vector_norm(points_LD, dim=1, keepdim=True).square_()
    distances_LS.add_(point_norms_L1).clamp_min_(0)
    share = cancelling_share(x_SD.dtype, x_SD.shape[1])
    points_P, rows_P = (distances_LS < share * (sq_norms_S + point_norms_L1)).nonzero(as_tuple=True)
    exact_P = pair_sq_distances(x_SD, points_LD, rows_P, points_P)
    distances_LS[points_P, rows_P] = exact_P.to(distances_LS.dtype)
    return distances_LS


def sq_distances_with(
    rows_L: torch.Tensor,
    closest_S: torch.Tensor,
    x_SD: torch.Tensor,
    sq_norms_S: torch.Tensor,
    weights_S: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared distances to the nearest chosen row if one more is chosen, and their sums.

    Parameters
    ----------
    rows_L : int64 Tensor of shape (L,)
        Rows, each of which by itself may be chosen next; at distance 0 from themselves.
    closest_S : Tensor of shape (S,)
        Squared distances of all rows to the nearest row chosen so far.
    x_SD, sq_norms_S : Tensor of shape (S, D) and (S,)
        The rows, and their squared lengths.
    weights_S : float64 Tensor of shape (S,), or None
        Weights of the rows in the sums; None for 1.

    Returns
    -------
    distances_LS : Tensor of shape (L, S)
        Squared distances with each of `rows_L` chosen.
    costs_L : float64 Tensor of shape (L,)
        Weighted sums of these over the rows.
    """
    points_LD = x_SD.index_select(0, rows_L)
    fits = (
        closest_S.dtype == x_SD.dtype
        and closest_S.shape == sq_norms_S.shape
        and rows_L.dtype == torch.int64
        and can_weigh(weights_S, len(x_SD))
    )
    if fits and _can_compare(points_LD, x_SD, sq_norms_S):
        parts = -(-len(x_SD) // instruction_sets()[0].functions.PART_ROWS)
        costs_PL = x_SD.new_empty((parts, len(rows_L)), dtype=torch.float64)
        distances_LS = _compare(
            points_LD, x_SD, sq_norms_S, rows_L.contiguous(), closest_S.contiguous(),
            None if weights_S is None else weights_S.contiguous(), costs_PL,
        )  # fmt: skip
        return distances_LS, costs_PL.sum(dim=0)
    distances_LS = sq_distances_between(points_LD, x_SD, sq_norms_S)
    distances_LS.scatter_(1, rows_L[:, None], 0)
    torch.minimum(distances_LS, closest_S, out=distances_LS)
    weighted_LS = distances_LS if weights_S is None else distances_LS * weights_S
    return distances_LS, weighted_LS.sum(dim=1, dtype=torch.float64)


def _can_compare(points_LD: torch.Tensor, x_SD: torch.Tensor, sq_norms_S: torch.Tensor) -> bool:
    """Whether there is compiled code for these tensors."""
    return (
        bool(instruction_sets())
        and x_SD.is_cpu
        and {points_LD.dtype, x_SD.dtype, sq_norms_S.dtype} in ({torch.float32}, {torch.float64})
        and x_SD.shape == (*sq_norms_S.shape, points_LD.shape[1])
        and min(points_LD.numel(), x_SD.numel()) > 0
    )


def _compare(
    points_LD: torch.Tensor,
    x_SD: torch.Tensor,
    sq_norms_S: torch.Tensor,
    own_L: torch.Tensor | None = None,
    closest_S: torch.Tensor | None = None,
    weights_S: torch.Tensor | None = None,
    costs_PL: torch.Tensor | None = None,
) -> torch.Tensor:
    """Distances by the extension: of `sq_distances_with` if the last four are given."""
    best, n_points = instruction_sets()[0], points_LD.shape[0]
    is_double = x_SD.dtype == torch.float64
    panel = best.float64_panel if is_double else best.float32_panel
    n_lanes, n_padded = (-(-n // panel) * panel for n in points_LD.shape)
    points_LD, x_SD = points_LD.contiguous(), x_SD.contiguous()
    sq_norms_S = sq_norms_S.contiguous()
    packed, c_sq = x_SD.new_empty((n_lanes, n_padded)), x_SD.new_empty(n_lanes)
    distances_LS = x_SD.new_empty((n_points, x_SD.shape[0]))
    best.functions.compare(
        best.number,
        is_double,
        x_SD.data_ptr(),
        sq_norms_S.data_ptr(),
        points_LD.data_ptr(),
        packed.data_ptr(),
        c_sq.data_ptr(),
        distances_LS.data_ptr(),
        address(own_L),
        address(closest_S),
        address(weights_S),
        address(costs_PL),
        *x_SD.shape,
        n_points,
        cancelling_share(x_SD.dtype, x_SD.shape[1]),
        n_threads_for(x_SD.numel() * n_points),
    )
    return distances_LS


def sq_distances_to(
    x_BD: torch.Tensor, labels_B: torch.Tensor, centroids_KD: torch.Tensor
) -> torch.Tensor:
    """Squared distance of each row to the centroid of its label, float64, shape (B,).

    A sum of squared differences, in which nothing cancels: more exact than
    ``|x|^2 - 2 x.c + |c|^2``, by which the nearest centroid is found.
    """
    result_B = torch.empty(x_BD.shape[0], dtype=torch.float64, device=x_BD.device)
    if can_compile_differences(x_BD, labels_B, centroids_KD):
        compiled_differences(x_BD, labels_B, centroids_KD, result_B)
        return result_B
    tile_rows = max(TILE_ELEMENTS[x_BD.device.type] // max(x_BD.shape[1], 1), 1)
    for start in range(0, len(x_BD), tile_rows):
        tile = slice(start, start + tile_rows)
        difference = x_BD[tile] - centroids_KD.index_select(0, labels_B[tile])
        # In float64, since the squares of small differences would vanish in float32.
        norms_T = torch.linalg.vector_norm(difference, dim=1, dtype=torch.float64)
        result_B[tile] = norms_T.square_()
    return result_B
