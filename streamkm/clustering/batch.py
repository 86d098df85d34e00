"""The rows of one batch on their way to a kernel."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["MOST_SQ_NORM", "Batch"]

#: The longest row whose squared distances fit: in float32 they must not overflow themselves,
#: and from float64 the centroids must fit into float32, in which they are saved.
_FLOAT32 = torch.finfo(torch.float32)
MOST_SQ_NORM = {torch.float32: _FLOAT32.max / 4, torch.float64: _FLOAT32.max**2}


@dataclass
class Batch:
    """B rows that a kernel can take: prepared in memory of their own, or where they lie.

    Of rows that stay where they lie nothing is known until they have labels: `sq_norms_B` and
    `dropped_B` are then found out in the read that assigns them (see `assignment.nearest`).
    """

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
    lies_in_window: bool = False
    """Whether nothing is known of the rows yet, for a kernel that takes them where they lie."""

    def __len__(self) -> int:
        return len(self.x_ND if self.positions_B is None else self.positions_B)

    @property
    def x_BD(self) -> torch.Tensor:
        """The rows, where they are prepared in memory of their own."""
        assert self.positions_B is None
        return self.x_ND

    @property
    def left_out_B(self) -> torch.Tensor | None:
        """True for rows that no cluster counts: dropped, or of weight 0."""
        return self.dropped_B if self.weights_B is None else self.weights_B == 0
