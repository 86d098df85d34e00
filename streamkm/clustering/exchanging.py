"""Rows that clusters may have, and which centroids go elsewhere so that all have about as many."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from streamkm.kernels import sq_distances_between

if TYPE_CHECKING:
    from streamkm.bounds import Bounds
    from streamkm.clustering.state import KMeansState

__all__ = ["allotted", "exchanges", "to_nearest"]

#: Clusters above this share of the mean are not given up.
GIVEN_UP_BELOW = 0.5
#: Distances that are held at a time.
TILE_ELEMENTS = 1 << 22


def allotted(counts_K: torch.Tensor, bounds: Bounds) -> torch.Tensor:
    """Rows that each cluster may have, int64, so that none gets less than the least.

    Without a least that is the most. Else it is for each what it has, brought within the bounds and
    then changed so that all add up to the number of rows: what is too little is taken from those
    that have more than the least, in proportion. Clusters that can have no more than this cannot
    have less, either.
    """
    if not bounds.least:
        return torch.full_like(counts_K, bounds.most)
    most_K = counts_K.clamp(bounds.least, bounds.most)
    while left := int(counts_K.sum() - most_K.sum()):
        room_K = bounds.most - most_K if left > 0 else most_K - bounds.least
        share_K = (room_K * (abs(left) / float(room_K.sum()))).long()
        if not share_K.any():  # The last few: one for each of those with the most room.
            share_K[room_K.argsort(descending=True, stable=True)[: abs(left)]] = 1
            share_K = torch.minimum(share_K, room_K)
        most_K += share_K if left > 0 else -share_K
    return most_K


def exchanges(
    state: KMeansState, counts_K: torch.Tensor, bounds: Bounds, n_moved: int, mean: float
) -> list[tuple[int, int]]:
    """Pairs of a cluster to divide and one that is given up for it, at most `n_moved`.

    Clusters are given up whose rows are near to another's (Ward 1963), those far below the least
    first. The cluster is divided that has the most rows for each centroid it then has.
    """
    few = (counts_K < GIVEN_UP_BELOW * mean).nonzero().squeeze(1)
    few = few[counts_K[few].argsort(stable=True)][: 4 * n_moved]
    if not len(few) or state.k < 3:
        return []
    loss_F = to_nearest(state.centroids_KD, few).double() * counts_K[few]
    loss_F.masked_fill_(counts_K[few] < bounds.least / 2, -1)
    load_K, parts_K = counts_K.double(), torch.ones_like(counts_K)
    pairs = []
    for moved in few[loss_F.argsort(stable=True)][:n_moved].tolist():
        load_K[moved] = 0
        divided = int((load_K / parts_K).argmax())
        if load_K[divided] < mean * parts_K[divided]:
            break
        parts_K[divided] += 1
        pairs.append((divided, moved))
    return pairs


def to_nearest(centroids_KD: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """The squared distance from each chosen centroid to the nearest other."""
    sq_norms_K, found = centroids_KD.square().sum(dim=1), []
    for part in chosen.split(max(TILE_ELEMENTS // len(centroids_KD), 1)):
        apart_PK = sq_distances_between(centroids_KD[part], centroids_KD, sq_norms_K)
        found.append(apart_PK.scatter(1, part[:, None], torch.inf).amin(dim=1))
    return torch.cat(found)
