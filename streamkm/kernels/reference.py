"""Assignment and accumulation in plain torch: the oracle, and a kernel for every device.

Squared distances come from ``|x|^2 - 2 x.c + |c|^2``, a matrix product, in tiles of rows
whose scores stay in the cache. Rows with several scores within rounding of the least are
rechecked (see ``kernels.exact``). The rounding error grows with the distance of the data
from the origin, so rows and centroids are centred before (see ``clustering.scaling``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import torch

from streamkm.kernels.base import Assignment, Rows, TwoNearest, assign_then_add
from streamkm.kernels.exact import (
    cancelling_share,
    correct_,
    recheck_,
    recheck_second_,
    screening_slack,
)
from streamkm.kernels.precision import full_precision

if TYPE_CHECKING:
    from streamkm.kernels.base import KernelRequest

__all__ = ["ReferenceKernel", "add_by_label", "mass_by_label"]

#: Bytes of the scores of one tile, at most: on a CPU a core's share of the cache, on a GPU
#: enough to keep it busy.
TILE_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}
#: Rows of a tile, at least: with fewer a matrix product loses its speed.
MIN_TILE_ROWS = 128
#: Rows that are widened to float64 at once to be added up.
ADDED_ROWS = 16384


class ReferenceKernel:
    """Plain torch on `device`, for batches of up to `batch_rows` rows and `k` centroids."""

    name = "reference"
    stored_dtypes: tuple[torch.dtype, ...] = ()
    distances_cancel = True
    in_place = None
    whole_passes = None
    stepper = None

    def __init__(
        self,
        batch_rows: int,
        k: int,
        dtype: torch.dtype,
        device: torch.device,
        precision: str = "exact",
    ) -> None:
        self._rechecks = precision == "exact"
        tile_rows = self.tile_rows(batch_rows, k, dtype, device)
        self._scores = torch.empty((tile_rows, k), dtype=dtype, device=device)
        self._indices = torch.arange(k, dtype=dtype, device=device)
        self.n_rechecked = torch.zeros((), dtype=torch.int64, device=device)

    @classmethod
    def check(cls, _device: torch.device) -> None:
        """Accept every device."""

    @classmethod
    def make(cls, request: KernelRequest) -> Self:
        """See `Kernel`."""
        return cls(request.batch_rows, request.k, request.dtype, request.device, request.precision)

    @staticmethod
    def tile_rows(batch_rows: int, k: int, dtype: torch.dtype, device: torch.device) -> int:
        """Rows of a tile, scored at once."""
        fitting = TILE_BYTES[device.type] // (k * dtype.itemsize)
        return min(max(fitting, MIN_TILE_ROWS), batch_rows)

    @full_precision()
    def assign(
        self, x_BD: torch.Tensor, sq_norms_B: torch.Tensor, centroids_KD: torch.Tensor
    ) -> Assignment:
        """Nearest centroid of each row; see `Kernel`."""
        return self._assign(x_BD, sq_norms_B, centroids_KD, None)

    @full_precision()
    def assign_two(
        self, x_BD: torch.Tensor, sq_norms_B: torch.Tensor, centroids_KD: torch.Tensor
    ) -> TwoNearest:
        """The two nearest centroids of each row; see `Kernel`."""
        second_B = torch.empty_like(sq_norms_B)
        labels_B, sq_distances_B = self._assign(x_BD, sq_norms_B, centroids_KD, second_B)
        return TwoNearest(labels_B, sq_distances_B, second_B)

    def _assign(
        self,
        x_BD: torch.Tensor,
        sq_norms_B: torch.Tensor,
        centroids_KD: torch.Tensor,
        second_B: torch.Tensor | None,
    ) -> Assignment:
        c_sq_K = centroids_KD.square().sum(dim=1)
        largest, k = c_sq_K.max(), len(c_sq_K)
        # Of fewer centroids than there is room for, the scores still lie one after the other.
        scores_MK = self._scores.view(-1)[: len(self._scores) * k].view(-1, k)
        best_B, labels_B = torch.empty_like(sq_norms_B), torch.empty_like(sq_norms_B)
        n_near_B = torch.empty_like(sq_norms_B)
        for start in range(0, len(x_BD), len(self._scores)):
            tile = slice(start, min(start + len(self._scores), len(x_BD)))
            scores_TK = scores_MK[: tile.stop - tile.start]
            torch.addmm(c_sq_K, x_BD[tile], centroids_KD.T, alpha=-2, out=scores_TK)
            if second_B is not None:
                second_B[tile] = _second_least(scores_TK)
            if not self._rechecks:
                best_B[tile], labels_B[tile] = torch.min(scores_TK, dim=1)
                continue
            torch.amin(scores_TK, dim=1, out=best_B[tile])
            # 1 where a centroid may be the nearest, 0 elsewhere. If only one may, the
            # product with the indices is its index: three times as fast as a minimum with
            # its index, which torch does not vectorise.
            slack_T = screening_slack(sq_norms_B[tile], best_B[tile], largest, x_BD.shape[1])
            limit_T = best_B[tile] + slack_T
            near_TK = scores_TK.le_(limit_T[:, None])
            torch.mv(near_TK, self._indices[:k], out=labels_B[tile])
            torch.sum(near_TK, dim=1, out=n_near_B[tile])
        labels_B, sq_distances_B = labels_B.long(), best_B.add_(sq_norms_B).clamp_min_(0)
        if self._rechecks:
            # Not ``> 1``: if a score has overflowed, no centroid is near.
            uncertain_B = n_near_B != 1
            self.n_rechecked += uncertain_B.sum()
            recheck_(labels_B, sq_distances_B, uncertain_B, x_BD, centroids_KD)
        correct_(sq_distances_B, sq_norms_B, labels_B, x_BD, centroids_KD.double())
        if second_B is not None:
            second_B.add_(sq_norms_B).clamp_min_(0)
            if self._rechecks:
                share = 2 * cancelling_share(x_BD.dtype, x_BD.shape[1])
                doubtful_B = (n_near_B != 1) | (second_B < share * sq_norms_B)
                recheck_second_(second_B, doubtful_B, x_BD, centroids_KD)
        return Assignment(labels_B, sq_distances_B)

    def accumulate(
        self,
        x_BD: torch.Tensor,
        labels_B: torch.Tensor,
        *,
        sums_KD: torch.Tensor,
        counts_K: torch.Tensor,
        shares_B: torch.Tensor | None = None,
    ) -> None:
        """Add rows to their clusters; see `Kernel`."""
        for start in range(0, len(x_BD), ADDED_ROWS):
            tile = slice(start, start + ADDED_ROWS)
            wide_TD, labels_T = x_BD[tile].double(), labels_B[tile]
            if shares_B is not None:
                wide_TD = wide_TD * shares_B[tile, None]
            counted_K = torch.zeros_like(counts_K)
            counted_K.index_add_(0, labels_T, torch.ones_like(labels_T))
            counts_K += counted_K
            add_by_label(wide_TD, labels_T, counted_K, sums_KD)

    def step(
        self,
        rows: Rows,
        centroids_KD: torch.Tensor,
        *,
        sums_KD: torch.Tensor,
        counts_K: torch.Tensor,
    ) -> Assignment:
        """Assign rows and add them up; see `Kernel`."""
        return assign_then_add(self, rows, centroids_KD, sums_KD=sums_KD, counts_K=counts_K)


def _second_least(scores_TK: torch.Tensor) -> torch.Tensor:
    """Second least score of each row; infinite if there is only one."""
    if scores_TK.shape[1] == 1:
        return torch.full_like(scores_TK[:, 0], torch.inf)
    return scores_TK.topk(2, dim=1, largest=False).values[:, 1]


def add_by_label(
    x_BD: torch.Tensor, labels_B: torch.Tensor, counts_K: torch.Tensor, sums_KD: torch.Tensor
) -> None:
    """Add each row to the sum of its label, in the same order on every call.

    `counts_K` holds the number of rows of each label; `sums_KD` has the dtype of the rows.
    """
    if x_BD.device.type == "cpu":
        # It sorts the rows by label and adds those of each cluster in order.
        sums_KD.index_add_(0, labels_B, x_BD)
        return
    # On a GPU index_add_ adds with atomics, in the order in which threads happen to run.
    order_B = torch.argsort(labels_B, stable=True)
    sums_KD += torch.segment_reduce(
        x_BD.index_select(0, order_B), "sum", lengths=counts_K, axis=0, unsafe=True
    )


def mass_by_label(weights_B: torch.Tensor, labels_B: torch.Tensor, k: int) -> torch.Tensor:
    """Sum of the weights of each of `k` labels, added in the same order on every call."""
    if weights_B.is_cpu:
        return torch.bincount(labels_B, weights_B, minlength=k)
    counts_K = torch.zeros(k, dtype=torch.int64, device=labels_B.device)
    counts_K.index_add_(0, labels_B, torch.ones_like(labels_B))  # whole numbers: in any order
    mass_K1 = weights_B.new_zeros((k, 1))
    add_by_label(weights_B[:, None], labels_B, counts_K, mass_K1)
    return mass_K1[:, 0]
