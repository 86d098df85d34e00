"""Prepares the rows of a window as a batch: gathers, widens and scales them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch

if TYPE_CHECKING:
    from streamkm.clustering.batch import Batch
    from streamkm.clustering.scaling import Scaling
    from streamkm.kernels import Kernel

__all__ = ["Preparation"]


@dataclass(frozen=True)
class Preparation:
    """Makes batches for one kernel, in memory that is allocated once."""

    scaling: Scaling
    workspace_BD: torch.Tensor
    """Memory for batches whose rows cannot be used where they lie in the window."""
    in_place: bool = False
    """Whether rows that need no change are left to the kernel where they lie."""

    @classmethod
    def for_kernel(
        cls, scaling: Scaling, kernel: Kernel, *, batch_rows: int, stored: torch.dtype,
        dtype: torch.dtype, in_place: bool = True,
    ) -> Self:  # fmt: skip
        """The preparation that `kernel` needs for rows of dtype `stored`, compared in `dtype`.

        With `in_place` false every batch is prepared: it comes with its squared lengths and its
        dropped rows.
        """
        row_dtype = scaling.row_dtype(stored, dtype, kernel.stored_dtypes)
        takes_in_place = in_place and kernel.in_place is not None
        return cls(scaling, cls.workspace(scaling, batch_rows, row_dtype), takes_in_place)

    @classmethod
    def widened(cls, scaling: Scaling, *, batch_rows: int, dtype: torch.dtype) -> Self:
        """The preparation that widens rows of any stored dtype to `dtype`."""
        return cls(scaling, cls.workspace(scaling, batch_rows, dtype))

    @staticmethod
    def workspace(scaling: Scaling, batch_rows: int, dtype: torch.dtype) -> torch.Tensor:
        """Memory for `batch_rows` rows on the device of `scaling`."""
        shift_D = scaling.shift_D
        return torch.empty((batch_rows, len(shift_D)), dtype=dtype, device=shift_D.device)

    def __call__(
        self,
        x_ND: torch.Tensor,
        rows: torch.Tensor | slice,
        weights_N: torch.Tensor | None = None,
    ) -> Batch:
        """The batch of `rows` of a window, valid until the next call."""
        return self.scaling.prepare(
            x_ND, rows, self.workspace_BD, weights_N, in_place=self.in_place
        )
