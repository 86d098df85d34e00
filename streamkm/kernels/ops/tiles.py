"""Assignment and accumulation by the compiled extension for `CpuKernel`.

There is no version in torch here: without the extension, `ReferenceKernel` does both.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from streamkm.kernels.extension import address, n_threads_for

if TYPE_CHECKING:
    from streamkm.kernels.base import PassSums
    from streamkm.kernels.extension import InstructionSet

__all__ = ["EPILOGUE_PRODUCTS", "Adding", "Wanted", "accumulate_tiles_", "assign_tiles_"]

#: Cost of comparing a score with the two least so far, in products.
EPILOGUE_PRODUCTS = 16


class Wanted(NamedTuple):
    """Further tensors for `assign_tiles_` to fill, beside labels and distances; None for none."""

    second_B: torch.Tensor | None = None
    """Squared distances to the second nearest centroids."""
    dropped_B: torch.Tensor | None = None
    """bool: rows that are not finite, or of a squared length above `most_sq_norm`. If given,
    `sq_norms_B` is filled as well."""
    most_sq_norm: float = math.inf
    exact_B: torch.Tensor | None = None
    """float64: distances as sums of squared differences."""


class Adding(NamedTuple):
    """Sums of a pass that rows are added to as soon as they have their labels."""

    to: PassSums
    unit: float
    """What rows are multiplied by, a power of two."""
    order_B: torch.Tensor
    """int32: scratch memory."""


def assign_tiles_(
    instruction_set: InstructionSet,
    x_ND: torch.Tensor,
    positions_B: torch.Tensor | None,
    sq_norms_B: torch.Tensor,
    centroids_KD: torch.Tensor,
    packed: torch.Tensor,
    c_sq: torch.Tensor,
    zeros_D: torch.Tensor,
    wanted: Wanted,
    *,
    rounding_share: float,
    cancelling_share: float,
    rechecks: bool,
    adding: Adding | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int, int]:
    """Nearest centroids of rows of `x_ND`; tensors are contiguous, and the caller checks shapes.

    With `adding`, for which dropped rows must be `wanted`, rows are added up in the same call.

    Returns
    -------
    labels_B : int64 Tensor of shape (B,)
    sq_distances_B : Tensor of shape (B,)
    uncertain_B : bool Tensor of shape (B,)
        Rows that the screen left in doubt; rechecked if `rechecks`.
    n_uncertain, n_dropped : int
    """
    (n_window, n_features), (n_rows,), k = x_ND.shape, sq_norms_B.shape, centroids_KD.shape[0]
    labels_B = x_ND.new_empty(n_rows, dtype=torch.int64)
    sq_distances_B = torch.empty_like(sq_norms_B)
    uncertain_B = x_ND.new_empty(n_rows, dtype=torch.bool)
    functions = instruction_set.functions
    call = functions.assign
    more: tuple[int | float, ...] = ()
    if adding is not None:
        offsets = x_ND.new_empty(k + 2, dtype=torch.int64)
        call, more = functions.assign_and_add, _added_to(adding, offsets, n_rows, n_features)
    n_uncertain, n_dropped = call(
        instruction_set.number,
        x_ND.dtype == torch.float64,
        x_ND.data_ptr(),
        address(positions_B),
        sq_norms_B.data_ptr(),
        centroids_KD.data_ptr(),
        packed.data_ptr(),
        c_sq.data_ptr(),
        labels_B.data_ptr(),
        sq_distances_B.data_ptr(),
        uncertain_B.data_ptr(),
        address(wanted.second_B),
        address(wanted.dropped_B),
        zeros_D.data_ptr(),
        address(wanted.exact_B),
        n_window,
        n_rows,
        n_features,
        k,
        rounding_share,
        cancelling_share,
        wanted.most_sq_norm,
        rechecks,
        n_threads_for(n_rows * (n_features + EPILOGUE_PRODUCTS) * k),
        *more,
    )
    return labels_B, sq_distances_B, uncertain_B, n_uncertain, n_dropped


def _added_to(
    adding: Adding, offsets: torch.Tensor, n_rows: int, n_features: int
) -> tuple[int | float, ...]:
    """The further arguments of `assign_and_add`; `offsets` is scratch memory."""
    sums_LKD, grades_K, counts = adding.to
    return (
        adding.order_B.data_ptr(),
        offsets.data_ptr(),
        *(counts_K.data_ptr() for counts_K in counts),
        sums_LKD.data_ptr(),
        grades_K.data_ptr(),
        adding.unit,
        n_threads_for(n_rows * n_features),
    )


def accumulate_tiles_(
    instruction_set: InstructionSet,
    x_ND: torch.Tensor,
    positions_B: torch.Tensor | None,
    shares_B: torch.Tensor | None,
    labels_B: torch.Tensor,
    order_B: torch.Tensor,
    sums_KD: torch.Tensor,
    counts_K: torch.Tensor,
) -> None:
    """Add rows, times their shares, to float64 sums and to counts, in the order of rows.

    `order_B` is scratch memory. Shares are not for rows that are given by positions.
    """
    (n_window, n_features), (n_rows,), k = x_ND.shape, labels_B.shape, sums_KD.shape[0]
    offsets = x_ND.new_empty(k + 1, dtype=torch.int64)
    instruction_set.functions.accumulate(
        instruction_set.number,
        x_ND.dtype == torch.float64,
        x_ND.data_ptr(),
        address(positions_B),
        address(shares_B),
        labels_B.data_ptr(),
        order_B.data_ptr(),
        offsets.data_ptr(),
        counts_K.data_ptr(),
        sums_KD.data_ptr(),
        n_window,
        n_rows,
        n_features,
        k,
        n_threads_for(n_rows * n_features),
    )
