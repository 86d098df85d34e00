"""Moves centroids to follow the sums of their clusters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamkm.kernels import move_points_

if TYPE_CHECKING:
    import torch

    from streamkm.clustering.state import KMeansState
    from streamkm.kernels import Sums

__all__ = ["move_centroids_"]


def move_centroids_(
    state: KMeansState, touched_K: torch.Tensor, *, spherical: bool, added: Sums | None = None
) -> torch.Tensor:
    """Move touched centroids to the means of their clusters, or to the directions of their sums.

    `added` is first added to the sums of these clusters. If `spherical`, a centroid whose sum is
    0 stays: it has no direction.

    Returns
    -------
    Tensor of shape (), float64
        Squared centroid shift: the sum of the squared distances that centroids moved.
    """
    return move_points_(
        state.centroids_KD,
        state.sums_KD,
        state.masses_K,
        touched_K,
        spherical=spherical,
        added=added,
    )
