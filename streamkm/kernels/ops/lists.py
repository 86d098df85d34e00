"""Nearest of a few listed centroids for each row, by the compiled extension for `CpuKernel`.

One call labels the rows of all lists. A call for each list took three times as long, where a batch
has few rows of each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from streamkm.kernels.extension import n_threads_for
from streamkm.kernels.ops.tiles import EPILOGUE_PRODUCTS

if TYPE_CHECKING:
    from streamkm.kernels.base import Listed
    from streamkm.kernels.extension import InstructionSet

__all__ = ["assign_lists_"]


def assign_lists_(
    instruction_set: InstructionSet,
    x_BD: torch.Tensor,
    sq_norms_B: torch.Tensor,
    centroids_KD: torch.Tensor,
    lists: Listed,
    *,
    rounding_share: float,
    cancelling_share: float,
    rechecks: bool,
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Labels, squared distances, and how many rows were in doubt; tensors are contiguous.

    Both have the bits of a call of `assign_tiles_` for each list.
    """
    (n_rows, n_features), k = x_BD.shape, len(centroids_KD)
    labels_B = x_BD.new_empty(n_rows, dtype=torch.int64)
    sq_distances_B = torch.empty_like(sq_norms_B)
    n_members = len(lists.members_P)
    n_in_doubt = instruction_set.functions.assign_listed(
        instruction_set.number,
        x_BD.dtype == torch.float64,
        x_BD.data_ptr(),
        sq_norms_B.data_ptr(),
        centroids_KD.data_ptr(),
        lists.order_B.data_ptr(),
        lists.starts.data_ptr(),
        lists.members_P.data_ptr(),
        lists.offsets.data_ptr(),
        labels_B.data_ptr(),
        sq_distances_B.data_ptr(),
        len(lists.offsets) - 1,
        n_rows,
        n_features,
        k,
        rounding_share,
        cancelling_share,
        rechecks,
        n_threads_for((n_rows + n_members) * (n_features + EPILOGUE_PRODUCTS)),
    )
    return labels_B, sq_distances_B, n_in_doubt
