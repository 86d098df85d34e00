"""From rows of a window to a batch that one kernel can take."""

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
    """Gathers, widens and scales rows, in memory that is allocated once."""

    scaling: Scaling
    workspace_BD: torch.Tensor
    """Where batches lie that cannot be used where they are read to."""
    in_place: bool = False
    """Whether the kernel takes rows where they lie."""

    @classmethod
    def for_kernel(
        cls, scaling: Scaling, kernel: Kernel, *, batch_rows: int, stored: torch.dtype,
        dtype: torch.dtype, in_place: bool = True,
    ) -> Self:  # fmt: skip
        """What `kernel` needs of rows that are `stored` so and compared in `dtype`.

        With `in_place` false all that is known of a prepared row is known beforehand.
        """
        row_dtype = scaling.row_dtype(stored, dtype, kernel.stored_dtypes)
        takes_in_place = in_place and kernel.in_place is not None
        return cls(scaling, cls.workspace(scaling, batch_rows, row_dtype), takes_in_place)

    @classmethod
    def widened(cls, scaling: Scaling, *, batch_rows: int, dtype: torch.dtype) -> Self:
        """Rows in `dtype`, whatever they are stored in."""
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
        """The batch of `rows` of a window, valid until the next one is asked for."""
        return self.scaling.prepare(
            x_ND, rows, self.workspace_BD, weights_N, in_place=self.in_place
        )
