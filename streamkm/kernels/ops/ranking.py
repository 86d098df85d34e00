"""The several nearest centroids of each row, nearest first.

A matrix product screens all centroids in the dtype of the rows. Those whose scores are within
rounding of the last place are candidates: the true nearest are among them. Candidates are ranked by
sums of squared differences in float64, in which nothing cancels, so that the order is that of
float64 and equal distances go by the lower index. This is how a kernel decides a row in doubt (see
`streamkm.kernels.exact`), for every row. It is plain torch on any device; only the distances to
candidates are compiled, where there is an extension.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from streamkm.kernels.exact import pair_sq_distances, screening_slack
from streamkm.kernels.precision import full_precision

__all__ = ["Nearest", "nearest_bytes", "rank_nearest"]

#: Scores of one tile, at most, unless it has `MIN_TILE_ROWS`: 4 MiB of float32 on a CPU.
TILE_SCORES = {"cpu": 1 << 20, "cuda": 64 << 20}
#: Rows of a tile, at least: with fewer a matrix product loses its speed.
MIN_TILE_ROWS = 128
#: Pairs of a row and a candidate that are ranked at once, at most, unless they are of one row.
PAIRS = {"cpu": 1 << 18, "cuda": 8 << 20}
#: Bytes that ranking takes for a pair: its places, its distance, and copies of them that sort.
PAIR_BYTES = 64


class Nearest(NamedTuple):
    """The M nearest centroids of every row of a batch, nearest first."""

    labels_BM: torch.Tensor
    """Indices of centroids, int64; of equal distances the lower index is first."""
    sq_distances_BM: torch.Tensor
    """Squared Euclidean distances, float64."""


@full_precision()
def rank_nearest(
    x_BD: torch.Tensor, sq_norms_B: torch.Tensor, centroids_KD: torch.Tensor, n_nearest: int
) -> Nearest:
    """The `n_nearest` nearest centroids of each row, by float64 distances.

    Parameters
    ----------
    x_BD, centroids_KD : Tensor of shapes (B, D) and (K, D)
        Rows and centroids, both float32 or both float64.
    sq_norms_B : Tensor of shape (B,)
        Squared lengths of the rows.
    n_nearest : int
        From 1 to K.
    """
    n_rows, k, device = len(x_BD), len(centroids_KD), x_BD.device
    labels_BM = torch.empty((n_rows, n_nearest), dtype=torch.int64, device=device)
    sq_distances_BM = torch.empty((n_rows, n_nearest), dtype=torch.float64, device=device)
    c_sq_K = centroids_KD.square().sum(dim=1)
    largest = c_sq_K.max()
    for tile in _slices(n_rows, max(TILE_SCORES[device.type] // k, MIN_TILE_ROWS)):
        x_TD = x_BD[tile]
        scores_TK = torch.addmm(c_sq_K, x_TD, centroids_KD.T, alpha=-2)
        last_T = scores_TK.topk(n_nearest, dim=1, largest=False).values[:, -1]
        limit_T = last_T + screening_slack(sq_norms_B[tile], last_T, largest, x_BD.shape[1])
        # Not ``<=``: where a score has overflowed, every centroid is a candidate.
        near_TK = (scores_TK > limit_T[:, None]).logical_not_()
        del scores_TK
        most = int(near_TK.sum(dim=1).max())
        for part in _slices(len(x_TD), max(PAIRS[device.type] // most, 1)):
            ranked = _rank(x_TD[part], near_TK[part], centroids_KD, n_nearest)
            labels_BM[tile][part], sq_distances_BM[tile][part] = ranked
    return Nearest(labels_BM, sq_distances_BM)


def nearest_bytes(batch_rows: int, k: int, n_nearest: int, itemsize: int) -> int:
    """Host bytes that `rank_nearest` takes for a batch on a CPU, its results among them."""
    tile = max(TILE_SCORES["cpu"], min(MIN_TILE_ROWS, batch_rows) * k)
    pairs = max(PAIRS["cpu"], k)
    return tile * (itemsize + 2) + pairs * PAIR_BYTES + 16 * batch_rows * n_nearest


def _slices(n_rows: int, most: int) -> list[slice]:
    """Rows in slices of `most`."""
    return [slice(start, min(start + most, n_rows)) for start in range(0, n_rows, most)]


def _rank(
    x_TD: torch.Tensor, near_TK: torch.Tensor, centroids_KD: torch.Tensor, n_nearest: int
) -> Nearest:
    """The nearest among the candidates of each row, which are True in `near_TK`."""
    counts_T = near_TK.sum(dim=1)
    rows_P, columns_P = near_TK.nonzero(as_tuple=True)  # The candidates of a row in order of index.
    places_P = torch.arange(len(rows_P), device=rows_P.device)
    places_P -= (counts_T.cumsum(0) - counts_T).index_select(0, rows_P)
    sq_distances_TC = x_TD.new_full(
        (len(x_TD), int(counts_T.max())), torch.inf, dtype=torch.float64
    )
    columns_TC = columns_P.new_zeros(sq_distances_TC.shape)
    sq_distances_TC[rows_P, places_P] = pair_sq_distances(x_TD, centroids_KD, rows_P, columns_P)
    columns_TC[rows_P, places_P] = columns_P
    # A stable sort leaves equal distances in the order of the indices.
    sorted_TC, order_TC = sq_distances_TC.sort(dim=1, stable=True)
    order_TM = order_TC[:, :n_nearest]
    return Nearest(columns_TC.gather(1, order_TM), sorted_TC[:, :n_nearest])
