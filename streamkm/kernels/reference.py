"""Assignment and accumulation in plain torch: the oracle, and the kernel of every device.

Squared distances come from ``|x|^2 - 2 x.c + |c|^2``, a matrix product, in
tiles of rows whose scores stay in cache. Its rounding error grows with the
distance of the data from the origin, which is why rows and centroids are
centred before they get here (see ``clustering.scaling``).
"""

from __future__ import annotations

import torch

from streamkm.kernels.base import Assignment

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
        for start in range(0, n_rows, tile_rows):
            tile = slice(start, min(start + tile_rows, n_rows))
            scores_TK = self._scores[: tile.stop - tile.start]
            torch.addmm(c_sq_K, x_BD[tile], c_DK, alpha=-2, out=scores_TK)
            torch.min(scores_TK, dim=1, out=(best_B[tile], labels_B[tile]))
        labels_B = _first_alike(centroids_KD, c_sq_K).index_select(0, labels_B)
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


def _first_alike(centroids_KD: torch.Tensor, c_sq_K: torch.Tensor) -> torch.Tensor:
    """Index of the first centroid that is equal to each.

    A matrix product may round its last columns otherwise than the rest, so
    that equal centroids get scores that are not, and the least decides.
    """
    device, (k, n_features) = centroids_KD.device, centroids_KD.shape
    positions_K = torch.arange(k, device=device)
    sorted_sq_K = torch.sort(c_sq_K).values
    # Asking costs nothing on the CPU; on a GPU it would wait for the device.
    if device.type == "cpu" and not (sorted_sq_K[1:] == sorted_sq_K[:-1]).any():
        return positions_K
    # Sorted by a sum that hardly two others share, equal centroids lie side by side.
    weights_D = torch.arange(1, n_features + 1, dtype=c_sq_K.dtype, device=device).sqrt_()
    order_K = torch.argsort((centroids_KD * weights_D).sum(dim=1), stable=True)
    sorted_KD = centroids_KD.index_select(0, order_K)
    starts_K = positions_K.clone()
    starts_K[1:].masked_fill_((sorted_KD[1:] == sorted_KD[:-1]).all(dim=1), 0)
    firsts_K = order_K.index_select(0, starts_K.cummax(dim=0).values)
    return torch.empty_like(order_K).index_copy_(0, order_K, firsts_K)


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
