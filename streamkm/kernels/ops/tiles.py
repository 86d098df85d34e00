"""Assignment and accumulation by the compiled extension for `CpuKernel`.

There is no version in torch here: without the extension, `ReferenceKernel` does both.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from streamkm.kernels.extension import address, n_threads_for
from streamkm.kernels.ops.heads import Heads

if TYPE_CHECKING:
    from streamkm.kernels.base import PassSums
    from streamkm.kernels.extension import InstructionSet
    from streamkm.kernels.ops.groups import Groups

__all__ = [
    "EPILOGUE_PRODUCTS",
    "Adding",
    "Given",
    "Tiled",
    "Wanted",
    "accumulate_tiles_",
    "add_tiles_",
    "assign_tiles_",
]

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


class Given(NamedTuple):
    """Rows to assign, and what is wanted of them; tensors are contiguous."""

    x_ND: torch.Tensor
    positions_B: torch.Tensor | None
    sq_norms_B: torch.Tensor
    wanted: Wanted

    def cut(self, n_rows: int) -> tuple[Given, Given]:
        """The first `n_rows` and the others, on the same memory."""
        parts = []
        for part in (slice(n_rows), slice(n_rows, None)):
            x_ND, positions_B = self.x_ND, self.positions_B
            if positions_B is None:
                x_ND = x_ND[part]
            else:
                positions_B = positions_B[part]
            _, dropped_B, _, exact_B = self.wanted
            wanted = self.wanted._replace(
                dropped_B=None if dropped_B is None else dropped_B[part],
                exact_B=None if exact_B is None else exact_B[part],
            )
            parts.append(Given(x_ND, positions_B, self.sq_norms_B[part], wanted))
        return parts[0], parts[1]

    def rows(self) -> torch.Tensor:
        """The rows one after the other."""
        return self.x_ND if self.positions_B is None else self.x_ND[self.positions_B.long()]


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
    """Comparisons of rows with centroids, or with centres of groups; by heads as many as take that
    time, and those of all rows with all centroids where these were found to be in vain."""


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
    by: Groups | Heads | None = None,
) -> Tiled:
    """Nearest centroids of rows of `x_ND`; tensors are contiguous, and the caller checks shapes.

    `by` groups only those centroids are compared whose groups may have the nearest, by heads those
    whose heads are near. Both are for instruction sets that screen in bytes, and not where a second
    nearest is wanted.
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
    zeros, second = zeros_D.data_ptr(), address(wanted.second_B)
    if by is None:
        two = functions.assign(*of_rows, *found, second, dropped, zeros, exact, *rest)
        return Tiled(labels_B, sq_distances_B, uncertain_B, two[0], two[1], n_rows * k)
    filled = *found, dropped, zeros, exact
    if isinstance(by, Heads):
        turned = by.directions_MD.data_ptr(), by.middle_D.data_ptr()
        size = len(by.directions_MD), by.skew
        counts = functions.assign_by_heads(*of_rows, *turned, *filled, *size, *rest)
    else:
        grouped = by.order_K.data_ptr(), by.offsets.data_ptr()
        n_groups = len(by.offsets) - 1
        counts = functions.assign_grouped(*of_rows, *grouped, *filled, n_groups, *rest)
    return Tiled(labels_B, sq_distances_B, uncertain_B, *counts)


def add_tiles_(
    instruction_set: InstructionSet,
    x_ND: torch.Tensor,
    positions_B: torch.Tensor | None,
    labels_B: torch.Tensor,
    dropped_B: torch.Tensor | None,
    adding: Adding,
) -> None:
    """Add rows that have their labels, but for those dropped, to the sums of a pass.

    Tensors are contiguous, and the caller checks shapes.
    """
    sums_LKD, grades_K, counts = adding.to
    (n_window, n_features), (n_rows,), (k,) = x_ND.shape, labels_B.shape, grades_K.shape
    offsets = x_ND.new_empty(k + 2, dtype=torch.int64)
    instruction_set.functions.add_to_pass(
        instruction_set.number,
        x_ND.dtype == torch.float64,
        x_ND.data_ptr(),
        address(positions_B),
        labels_B.data_ptr(),
        address(dropped_B),
        adding.order_B.data_ptr(),
        offsets.data_ptr(),
        *(counts_K.data_ptr() for counts_K in counts),
        sums_LKD.data_ptr(),
        grades_K.data_ptr(),
        n_window,
        n_rows,
        n_features,
        k,
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
