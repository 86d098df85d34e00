"""Centroids follow the sums of their clusters.

On the CPU the compiled extension does it in one pass over the sums, where it was built;
elsewhere it is a few operations of torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from streamkm.clustering.scaling import normalized
from streamkm.kernels.extension import instruction_sets, n_threads_for

if TYPE_CHECKING:
    from streamkm.clustering.state import KMeansState

__all__ = ["Sums", "move_centroids_"]

#: What moving a feature of a centroid takes (a division above all), in products.
MOVE_PRODUCTS = 32


class Sums(NamedTuple):
    """Sums of the rows of each cluster, to be taken times a number."""

    sums_KD: torch.Tensor
    """In the dtype of centroids."""
    unit: torch.Tensor
    """A power of two, float64: where rows are weighted, the size of the weights."""

    def wide(self) -> torch.Tensor:
        """The sums themselves, float64."""
        return self.sums_KD.double().mul_(self.unit)


def move_centroids_(
    state: KMeansState, touched_K: torch.Tensor, *, spherical: bool, added: Sums | None = None
) -> torch.Tensor:
    """Move touched centroids to the means of their clusters, or the directions of their sums.

    Before that, `added` is added to the sums of these clusters. Where the sum of a spherical
    cluster has no direction the centroid stays.

    Returns
    -------
    Tensor of shape (), float64
        Squared centroid shift: the sum of the squared distances that they went.
    """
    lie_ready = state.centroids_KD.is_contiguous() and state.sums_KD.is_contiguous()
    if state.sums_KD.device.type == "cpu" and lie_ready and instruction_sets():
        return _move_compiled_(state, touched_K, spherical, added)
    if added is not None:
        state.sums_KD.add_(torch.where(touched_K[:, None], added.wide(), 0))
    if spherical:
        centres_KD = normalized(state.sums_KD)
        touched_K = touched_K & (state.sums_KD != 0).any(dim=1)
    else:
        masses_K = state.masses_K
        centres_KD = state.sums_KD / torch.where(masses_K > 0, masses_K, 1)[:, None]
    before_KD = state.centroids_KD
    moved_KD = torch.where(touched_K[:, None], centres_KD, before_KD).to(before_KD.dtype)
    shift = (moved_KD - before_KD).double().square_().sum()
    before_KD.copy_(moved_KD)
    return shift


def _move_compiled_(
    state: KMeansState, touched_K: torch.Tensor, spherical: bool, added: Sums | None
) -> torch.Tensor:
    best, masses_K = instruction_sets()[0], state.masses_K.double()
    centroids_KD, sq_steps_K = state.centroids_KD, torch.empty_like(masses_K)
    shift = best.functions.move(
        best.number,
        centroids_KD.dtype == torch.float64,
        state.sums_KD.data_ptr(),
        0 if added is None else added.sums_KD.data_ptr(),
        1.0 if added is None else float(added.unit),
        masses_K.data_ptr(),
        touched_K.data_ptr(),
        centroids_KD.data_ptr(),
        sq_steps_K.data_ptr(),
        *centroids_KD.shape,
        spherical,
        n_threads_for(centroids_KD.numel() * MOVE_PRODUCTS),
    )
    return torch.tensor(shift, dtype=torch.float64)
