"""Assignment and accumulation by the compiled extension for `CpuKernel`.

There is no version in torch here: without the extension, `ReferenceKernel` does both.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from streamkm.kernels.extension import address, n_threads_for

if TYPE_CHECKING:
    from streamkm.kernels.extension import InstructionSet
    from streamkm.kernels.ops.groups import Groups

__all__ = ["EPILOGUE_PRODUCTS", "Tiled", "Wanted", "accumulate_tiles_", "assign_tiles_"]

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


class Tiled(NamedTuple):
    """What `assign_tiles_` found."""

    labels_B: torch.Tensor
    """int64."""
    sq_distances_B: torch.Tensor
    uncertain_B: torch.Tensor
    """bool: rows that the screen left in doubt; rechecked if that was asked for."""
    n_uncertain: int
    n_dropped: int
    n_compared: int
    """Comparisons of rows with centroids, or with centres of groups."""


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
    groups: Groups | None = None,
) -> Tiled:
    """Nearest centroids of rows of `x_ND`; tensors are contiguous, and the caller checks shapes.

    With `groups` only those centroids are compared whose groups may have the nearest. They are for
    instruction sets that screen in bytes, and not where a second nearest is wanted.
    """
    (n_window, n_features), (n_rows,), k = x_ND.shape, sq_norms_B.shape, centroids_KD.shape[0]
    labels_B = x_ND.new_empty(n_rows, dtype=torch.int64)
    sq_distances_B = torch.empty_like(sq_norms_B)
    uncertain_B = x_ND.new_empty(n_rows, dtype=torch.bool)
    functions, number = instruction_set.functions, instruction_set.number
    of_rows = (
        number,
        x_ND.dtype == torch.float64,
        x_ND.data_ptr(),
        address(positions_B),
        sq_norms_B.data_ptr(),
        centroids_KD.data_ptr(),
        packed.data_ptr(),
        c_sq.data_ptr(),
    )
    found = (labels_B.data_ptr(), sq_distances_B.data_ptr(), uncertain_B.data_ptr())
    dropped, exact = address(wanted.dropped_B), address(wanted.exact_B)
    rest = (
        n_window,
        n_rows,
        n_features,
        k,
        rounding_share,
        cancelling_share,
        wanted.most_sq_norm,
        rechecks,
        n_threads_for(n_rows * (n_features + EPILOGUE_PRODUCTS) * k),
    )
    zeros = zeros_D.data_ptr()
    if groups is None:
        second = address(wanted.second_B)
        in_doubt = functions.assign(*of_rows, *found, second, dropped, zeros, exact, *rest)
        counts = *in_doubt, n_rows * k
    else:
        grouped = groups.order_K.data_ptr(), groups.offsets.data_ptr()
        n_groups = len(groups.offsets) - 1
        counts = functions.assign_grouped(
            *of_rows, *grouped, *found, dropped, zeros, exact, n_groups, *rest
        )
    return Tiled(labels_B, sq_distances_B, uncertain_B, *counts)


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
