"""Prepares the rows of a window as a batch: gathers, widens and scales them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Self

import torch

from streamkm.clustering.batch import MOST_SQ_NORM, Batch
from streamkm.devices import is_host
from streamkm.kernels import gather, normalize_

if TYPE_CHECKING:
    from streamkm.clustering.scaling import Scaling
    from streamkm.kernels import MadeKernel, StepKernel

__all__ = ["Preparation"]


@dataclass(frozen=True)
class Preparation:
    """Makes batches for one kernel, in memory that is allocated once."""

    scaling: Scaling
    workspace_BD: torch.Tensor
    """Memory for batches whose rows cannot be used where they lie in the window."""
    in_place: bool = False
    """Whether rows that need no change are left to the kernel where they lie."""
    weight_unit: float | None = None
    """See `Batch`."""
    stepper: StepKernel | None = None
    """What prepares batches in one launch, if the kernel can."""

    @classmethod
    def for_kernel(
        cls, scaling: Scaling, kernel: MadeKernel, *, batch_rows: int, stored: torch.dtype,
        dtype: torch.dtype, in_place: bool = True, weight_unit: float | None = None,
    ) -> Self:  # fmt: skip
        """The preparation that `kernel` needs for rows of dtype `stored`, compared in `dtype`.

        With `in_place` false every batch is prepared: it comes with its squared lengths and its
        dropped rows.
        """
        needs_change = scaling.normalize or scaling.is_affine
        row_dtype = dtype if needs_change or stored not in kernel.stored_dtypes else stored
        takes_in_place = in_place and kernel.in_place is not None
        workspace_BD = cls.workspace(scaling, batch_rows, row_dtype)
        return cls(scaling, workspace_BD, takes_in_place, weight_unit, kernel.stepper)

    @classmethod
    def widened(
        cls, scaling: Scaling, *, batch_rows: int, dtype: torch.dtype,
        weight_unit: float | None = None,
    ) -> Self:  # fmt: skip
        """The preparation that widens rows of any stored dtype to `dtype`."""
        workspace_BD = cls.workspace(scaling, batch_rows, dtype)
        return cls(scaling, workspace_BD, weight_unit=weight_unit)

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
        *,
        is_shared: bool = False,
    ) -> Batch:
        """The batch of `rows` of a window: gathered, widened and scaled; valid until the next call.

        Each row of a window may be prepared only once: consecutive rows that need no widening and
        no affine map stay in the window and may be changed there, unless it `is_shared`. Rows that
        need no change at all and have no weights are left to the kernel where they lie, if it takes
        them so.
        """
        scaling, dtype = self.scaling, self.workspace_BD.dtype
        is_as_stored = x_ND.dtype == dtype and not (scaling.normalize or scaling.is_affine)
        if self.in_place and is_as_stored and weights_N is None:
            if isinstance(rows, slice):
                x_ND, positions_B = x_ND[rows], None
            else:
                positions_B = rows
            unknown = x_ND.new_empty(0)
            return Batch(x_ND, unknown, None, positions_B=positions_B, lies_in_window=True)
        affine = self._affine if scaling.is_affine else ()
        if self.stepper is not None and weights_N is None and not scaling.normalize:
            return self._prepared_in_one_launch(x_ND, rows, affine, must_copy=is_shared)
        x_BD, sq_norms_B = gather(x_ND, rows, self.workspace_BD, *affine, must_copy=is_shared)
        dropped_B = self._dropped(x_BD, sq_norms_B) if x_ND.is_floating_point() else None
        weights_B = None if weights_N is None else weights_N[rows]
        if dropped_B is not None:
            x_BD.masked_fill_(dropped_B[:, None], 0)
            sq_norms_B.masked_fill_(dropped_B, 0)
            weights_B = None if weights_B is None else weights_B.masked_fill(dropped_B, 0)
        if scaling.normalize:
            normalize_(x_BD)
            sq_norms_B = torch.linalg.vector_norm(x_BD, dim=1).square_()
        return Batch(x_BD, sq_norms_B, dropped_B, scaling.normalize, weights_B, self.weight_unit)

    @cached_property
    def _affine(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Shift and factor in the dtype of the batches: on a GPU that is two launches."""
        dtype = self.workspace_BD.dtype
        return self.scaling.shift_D.to(dtype), self.scaling.factor_D.to(dtype)

    def _prepared_in_one_launch(
        self,
        x_ND: torch.Tensor,
        rows: torch.Tensor | slice,
        affine: tuple[torch.Tensor, ...],
        *,
        must_copy: bool,
    ) -> Batch:
        """`__call__` for rows without weights that are not normalised."""
        assert self.stepper is not None
        positions_B = None
        if isinstance(rows, slice):
            x_ND = x_ND[rows]
            lies_ready = x_ND.dtype == self.workspace_BD.dtype and not (affine or must_copy)
            x_BD = x_ND if lies_ready else self.workspace_BD[: x_ND.shape[0]]
        else:
            positions_B, x_BD = rows, self.workspace_BD[: rows.shape[0]]
        shift_D, factor_D = affine or (None, None)
        sq_norms_B, dropped_B = self.stepper.prepare(
            x_ND, positions_B, x_BD, shift_D, factor_D,
            most_sq_norm=MOST_SQ_NORM[torch.float32],
        )  # fmt: skip
        has_dropped = x_ND.is_floating_point()
        return Batch(x_BD, sq_norms_B, dropped_B if has_dropped else None)

    def _dropped(self, x_BD: torch.Tensor, sq_norms_B: torch.Tensor) -> torch.Tensor | None:
        """True for rows that cannot be used; None if it is known that there are none."""
        # Not ``>``, which is false for NaN.
        usable_B = sq_norms_B <= MOST_SQ_NORM[sq_norms_B.dtype]
        # On a GPU, asking whether any is dropped would make the host wait.
        if is_host(x_BD.device) and usable_B.all():
            return None
        if self.scaling.normalize:
            # A finite row has a direction, however long it is.
            usable_B = torch.linalg.vector_norm(x_BD, ord=torch.inf, dim=1).isfinite()
        return ~usable_B
