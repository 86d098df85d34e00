"""Assignment of rows of which the pass before has found something, by the compiled extension.

Of each row its label is known, and a distance below which no other centroid was. If centroids have
moved little since, the row must be compared with few of them: see ``native/carried.h``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from streamkm.kernels.extension import address, n_threads_for
from streamkm.kernels.ops.tiles import EPILOGUE_PRODUCTS, Given, Tiled

if TYPE_CHECKING:
    from streamkm.kernels.base import Carried
    from streamkm.kernels.extension import InstructionSet

__all__ = ["assign_carried_"]


def assign_carried_(
    instruction_set: InstructionSet,
    given: Given,
    carried: Carried,
    centroids_KD: torch.Tensor,
    packed: torch.Tensor,
    c_sq: torch.Tensor,
    zeros_D: torch.Tensor,
    *,
    rounding_share: float,
    cancelling_share: float,
) -> Tiled:
    """As `assign_tiles_`, by what is `carried`, which is brought up to date.

    Tensors are contiguous, and the caller checks shapes; exact distances and dropped rows are
    wanted. Rows in doubt are rechecked.
    """
    x_ND, positions_B, sq_norms_B, wanted = given
    (n_window, n_features), (n_rows,), k = x_ND.shape, sq_norms_B.shape, centroids_KD.shape[0]
    labels_B = x_ND.new_empty(n_rows, dtype=torch.int64)
    sq_distances_B = torch.empty_like(sq_norms_B)
    uncertain_B = x_ND.new_empty(n_rows, dtype=torch.bool)
    drift = carried.drift
    steps = (0, 0, 0, 0, 0, 0.0)
    if drift is not None:
        steps = (
            drift.members.data_ptr(),
            drift.offsets.data_ptr(),
            drift.limits.data_ptr(),
            len(drift.offsets) - 1,
            drift.farthest,
            drift.next,
        )
    counts = instruction_set.functions.assign_carried(
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
        address(wanted.dropped_B),
        zeros_D.data_ptr(),
        address(wanted.exact_B),
        carried.labels_B.data_ptr(),
        carried.lows_B.data_ptr(),
        *steps,
        n_window,
        n_rows,
        n_features,
        k,
        rounding_share,
        cancelling_share,
        wanted.most_sq_norm,
        n_threads_for(n_rows * (n_features + EPILOGUE_PRODUCTS) * k),
    )
    return Tiled(labels_B, sq_distances_B, uncertain_B, *counts)
