"""The rows of one batch on their way to a kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from streamkm.kernels import Assignment

if TYPE_CHECKING:
    from streamkm.kernels import CpuKernel

__all__ = ["MOST_SQ_NORM", "Batch"]

#: The longest row whose squared distances fit: in float32 they must not overflow themselves,
#: and from float64 the centroids must fit into float32, in which they are saved.
_FLOAT32 = torch.finfo(torch.float32)
MOST_SQ_NORM = {torch.float32: _FLOAT32.max / 4, torch.float64: _FLOAT32.max**2}


@dataclass
class Batch:
    """Rows of one batch, scaled and ready for a kernel."""

    x_ND: torch.Tensor
    """In the dtype of the centroids, or as they are stored (see `Scaling.row_dtype`)."""
    sq_norms_B: torch.Tensor
    """Squared lengths of the rows."""
    dropped_B: torch.Tensor | None
    """True where a row was not finite and counts as one of zeros; None if none was."""
    is_normalized: bool = False
    """Whether rows have unit length, but for rows of zeros."""
    weights_B: torch.Tensor | None = None
    """Weights of the rows, float64, 0 for those that were dropped; None where all weigh 1."""
    positions_B: torch.Tensor | None = None
    """Which rows of `x_ND`, which is a window then, int32; None for all of them."""
    measured_by: CpuKernel | None = None
    """The kernel that finds out `sq_norms_B` and `dropped_B`; None where they are known."""

    def __len__(self) -> int:
        return len(self.x_ND if self.positions_B is None else self.positions_B)

    def measure_(self, kernel: CpuKernel, centroids_KD: torch.Tensor, *, exact: bool) -> Assignment:
        """Labels by `measured_by`, and what was not known of the rows.

        Distances are sums of squared differences, float64, if `exact`.
        """
        labels_B, sq_distances_B, self.sq_norms_B, self.dropped_B = kernel.assign_where_they_lie(
            self.x_ND,
            self.positions_B,
            centroids_KD,
            most_sq_norm=MOST_SQ_NORM[self.x_ND.dtype],
            exact=exact,
        )
        return Assignment(labels_B, sq_distances_B)

    def take(self, indices: torch.Tensor) -> torch.Tensor:
        """Copies of some of the rows."""
        if self.positions_B is not None:
            indices = self.positions_B.index_select(0, indices)
        return self.x_ND.index_select(0, indices)

    @property
    def x_BD(self) -> torch.Tensor:
        """The rows, where they do not lie anywhere in a window."""
        assert self.positions_B is None
        return self.x_ND

    @property
    def left_out_B(self) -> torch.Tensor | None:
        """True for rows that no cluster counts: dropped, or of weight 0."""
        return self.dropped_B if self.weights_B is None else self.weights_B == 0
