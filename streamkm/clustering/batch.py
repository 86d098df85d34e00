"""The rows of one batch, as kernels take them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

__all__ = ["MOST_SQ_NORM", "Batch"]

_FLOAT32 = torch.finfo(torch.float32)
#: Greatest squared length of a row; longer rows are dropped. In float32 a squared distance, at
#: most 4 times that, must not overflow. In float64 centroids must still fit float32, in which
#: they are saved.
MOST_SQ_NORM = {torch.float32: _FLOAT32.max / 4, torch.float64: _FLOAT32.max**2}


@dataclass
class Batch:
    """B rows for a kernel: prepared in memory of their own, or left where they lie in a window.

    If they are left there, `sq_norms_B` and `dropped_B` are filled in by the read that assigns
    the rows (see `assignment.nearest`) and mean nothing before.
    """

    x_ND: torch.Tensor
    """The rows, or the window that holds them, in the dtype of the centroids or as stored (see
    `Preparation.for_kernel`)."""
    sq_norms_B: torch.Tensor
    """Squared lengths of the rows."""
    dropped_B: torch.Tensor | None
    """True for rows dropped because they are not finite or too long; None if there are none.
    Prepared rows hold zeros in their place."""
    is_normalized: bool = False
    """Whether rows have unit length, except rows of zeros."""
    weights_B: torch.Tensor | None = None
    """Weights of the rows, float64, 0 for dropped rows; None if all rows weigh 1."""
    weight_unit: float | None = None
    """A power of two above every weight, also of other batches; None for one of this batch."""
    positions_B: torch.Tensor | None = None
    """Positions of the rows in the window `x_ND`, int32; None for all rows of `x_ND`."""
    numbers_B: torch.Tensor | None = None
    """Numbers of the rows within a batch that several processes share, int32; None if these are
    all its rows."""
    n_shared: int = 0
    """Rows of the batch that is shared."""
    lies_in_window: bool = False
    """Whether the rows are left where they lie, for a kernel that takes them there."""

    def __len__(self) -> int:
        return (self.x_ND if self.positions_B is None else self.positions_B).shape[0]

    @property
    def n_whole(self) -> int:
        """Rows of the batch, those of other processes included."""
        return len(self) if self.numbers_B is None else self.n_shared

    @property
    def x_BD(self) -> torch.Tensor:
        """The rows themselves; only if they were not left in a window by position."""
        assert self.positions_B is None
        return self.x_ND

    @property
    def left_out_B(self) -> torch.Tensor | None:
        """True for rows that no cluster counts: dropped rows and rows of weight 0."""
        return self.dropped_B if self.weights_B is None else self._weightless_B

    @cached_property
    def shares(self) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Weights divided by a unit, or None without weights; and the unit, float64.

        The unit is a power of two above the largest weight: sums of weights of any size fit
        float64, and dividing by it rounds nothing.
        """
        unit = torch.ones((), dtype=torch.float64, device=self.x_ND.device)
        if self.weights_B is None:
            return None, unit
        if self.weight_unit is not None:
            unit *= self.weight_unit
        else:
            unit = torch.exp2(torch.frexp(self.weights_B.max()).exponent.double())
        return self.weights_B / unit, unit

    @cached_property
    def _weightless_B(self) -> torch.Tensor:
        assert self.weights_B is not None
        return self.weights_B == 0
