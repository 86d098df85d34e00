"""Assignment and accumulation in plain torch: the oracle, and the kernel of every device.

Squared distances come from ``|x|^2 - 2 x.c + |c|^2``, a matrix product, in
tiles of rows whose scores stay in cache. Rows whose two best scores are within
rounding of each other are looked at again (see ``kernels.exact``). The rounding
error grows with the distance of the data from the origin, which is why rows and
centroids are centred before they get here (see ``clustering.scaling``).
"""

from __future__ import annotations

import torch

from streamkm.kernels.base import Assignment
from streamkm.kernels.exact import recheck_, rounding_bound

__all__ = ["ReferenceKernel", "sq_distances_to"]

#: Scores of one tile of rows, at most: what a core's share of cache holds,
#: and what keeps a GPU busy.
TILE_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}
#: Below this many rows a matrix product loses its speed.
MIN_TILE_ROWS = 128


class ReferenceKernel:
    """Plain torch on `device`, for batches of up to `batch_rows` rows and `k` centroids."""

    name = "reference"

    def __init__(self, batch_rows: int, k: int, dtype: torch.dtype, device: torch.device) -> None:
        tile_rows = self.tile_rows(batch_rows, k, dtype, device)
        self._scores = torch.empty((tile_rows, k), dtype=dtype, device=device)
        self._starts = torch.arange(0, tile_rows * k, k, device=device)

    @staticmethod
    def tile_rows(batch_rows: int, k: int, dtype: torch.dtype, device: torch.device) -> int:
        """Rows that are scored at once."""
        fitting = TILE_BYTES[device.type] // (k * dtype.itemsize)
        return min(max(fitting, MIN_TILE_ROWS), batch_rows)

    def assign(
        self, x_BD: torch.Tensor, sq_norms_B: torch.Tensor, centroids_KD: torch.Tensor
    ) -> Assignment:
        """Nearest centroid of each row; see `Kernel`."""
        c_sq_K = centroids_KD.square().sum(dim=1)
        c_DK = centroids_KD.T
        n_rows, tile_rows = len(x_BD), len(self._scores)
        labels_B = torch.empty(n_rows, dtype=torch.int64, device=x_BD.device)
        best_B = torch.empty(n_rows, dtype=x_BD.dtype, device=x_BD.device)
        second_B = torch.empty_like(best_B)
        for start in range(0, n_rows, tile_rows):
            tile = slice(start, min(start + tile_rows, n_rows))
            scores_TK = self._scores[: tile.stop - tile.start]
            torch.addmm(c_sq_K, x_BD[tile], c_DK, alpha=-2, out=scores_TK)
            torch.min(scores_TK, dim=1, out=(best_B[tile], labels_B[tile]))
            # The second best is the best once the best is gone. (scatter_ does the
            # same a hundred times more slowly.)
            places_T = self._starts[: len(scores_TK)] + labels_B[tile]
            scores_TK.view(-1).index_fill_(0, places_T, torch.inf)
            torch.amin(scores_TK, dim=1, out=second_B[tile])
        bound_B = rounding_bound(sq_norms_B, c_sq_K.max(), x_BD.shape[1])
        uncertain_B = second_B - best_B <= 2 * bound_B
        recheck_(labels_B, best_B, uncertain_B, x_BD, centroids_KD)
        return Assignment(labels_B, best_B.add_(sq_norms_B).clamp_min_(0))

    def accumulate(
        self,
        x_BD: torch.Tensor,
        labels_B: torch.Tensor,
        *,
        sums_KD: torch.Tensor,
        counts_K: torch.Tensor,
    ) -> None:
        """Add rows to their clusters; see `Kernel`."""
        counts_B = torch.zeros_like(counts_K).index_add_(0, labels_B, torch.ones_like(labels_B))
        counts_K += counts_B
        if x_BD.device.type == "cpu":
            # Sorts the rows by label and adds each cluster's in order.
            sums_KD.index_add_(0, labels_B, x_BD)
            return
        # On a GPU index_add_ adds with atomics, in whatever order threads run.
        order_B = torch.argsort(labels_B, stable=True)
        sums_KD += torch.segment_reduce(
            x_BD.index_select(0, order_B), "sum", lengths=counts_B, axis=0, unsafe=True
        )


def sq_distances_to(
    x_BD: torch.Tensor, labels_B: torch.Tensor, centroids_KD: torch.Tensor
) -> torch.Tensor:
    """Squared distance of each row to the centroid of its label, as a sum of squares.

    More exact than the expanded form by which the nearest centroid is found:
    nothing cancels. float64, shape (B,).
    """
    result_B = torch.empty(len(x_BD), dtype=torch.float64, device=x_BD.device)
    tile_rows = max(TILE_BYTES[x_BD.device.type] // (4 * max(x_BD.shape[1], 1)), 1)
    for start in range(0, len(x_BD), tile_rows):
        tile = slice(start, start + tile_rows)
        difference = x_BD[tile] - centroids_KD.index_select(0, labels_B[tile])
        result_B[tile] = torch.linalg.vector_norm(difference, dim=1).double().square_()
    return result_B
