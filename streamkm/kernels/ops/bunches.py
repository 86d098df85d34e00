"""Rows in bunches, each with the few centroids among which are all its several nearest.

Groups of centroids (see `groups`) tell more than the nearest: the tenth nearest of a row is no
farther than the tenth nearest of any pool of centroids, and a group whose centre lies farther than
that and its radius has none of the ten. Rows whose nearest centroids are in one group make a bunch.
It is compared with what is left for any of its rows, in one call of what else compares rows with
all centroids. So bits are the same: the same is done with each pair.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from streamkm.kernels.exact import rounding_share

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streamkm.kernels.base import TwoNearest
    from streamkm.kernels.ops.groups import Groups
    from streamkm.kernels.rows import Rows

__all__ = ["Bunch", "bunches", "second_in_bunches"]

#: Rows of a bunch, at most: for each there is a number a group in memory.
MOST_ROWS = 1024
#: Groups of a bunch, on average.
GROUPS_OF_BUNCH = 8
#: Bunches that would be compared with more than this share of the centroids are compared with all.
MOST_LEFT = 0.5
#: Radii are this many times as wide, which is more than rounding to float32 takes from a bound.
WIDER = 1 + 2.0**-16
#: How many times the bound of rounding a centroid must be farther off to be left out.
SLACKS = 4


class Bunch(NamedTuple):
    """Rows, and the centroids to compare them with."""

    rows_R: torch.Tensor
    """int64."""
    centroids_C: torch.Tensor | None
    """int64, ascending; the longest of all centroids is among them. None for all."""


def bunches(
    x_BD: torch.Tensor,
    labels_B: torch.Tensor,
    centroids_KD: torch.Tensor,
    groups: Groups,
    n_nearest: int,
) -> Iterator[Bunch]:
    """Bunches of all rows, with their `n_nearest` nearest centroids and what is nearly as near.

    `labels_B` are nearest centroids. Rows that are compared with all centroids come last, at once.
    """
    k, order_K = len(centroids_KD), groups.order_K.long()
    sizes_G = groups.offsets.diff()
    group_K = torch.empty_like(order_K)
    group_K[order_K] = torch.repeat_interleave(sizes_G)
    c_sq_K = centroids_KD.square().sum(dim=1)
    longest = c_sq_K.argmax()
    centres_GD, radii_G = _centres(centroids_KD, group_K, sizes_G)
    centres_sq_G = centres_GD.square().sum(dim=1)
    members = order_K.split(sizes_G.tolist())
    # A bunch is of several groups that lie together: each takes calls, however few its rows are.
    some_SD, some_sq_S = (of_G[::GROUPS_OF_BUNCH] for of_G in (centres_GD, centres_sq_G))
    bunch_G = _sq_distances(centres_GD, centres_sq_G, some_SD, some_sq_S).argmin(dim=1)
    bunch_B = bunch_G[group_K[labels_B]]
    counts = torch.bincount(bunch_B, minlength=len(some_SD)).tolist()
    sorted_B = bunch_B.argsort(stable=True)
    share = SLACKS * rounding_share(x_BD.dtype, x_BD.shape[1])
    with_all = [sorted_B[:0]]
    for bunch, of_bunch_R in enumerate(sorted_B.split(counts)):
        pool_P = torch.cat([order_K[:0], *(members[i] for i in (bunch_G == bunch).nonzero())])
        if len(pool_P) < n_nearest:
            with_all.append(of_bunch_R)
            continue
        parts = [pool_P[i::n_nearest] for i in range(n_nearest)]
        pool_P = torch.cat(parts)
        c_PD, c_sq_P = centroids_KD[pool_P], c_sq_K[pool_P]
        for rows_R in of_bunch_R.split(MOST_ROWS) if len(of_bunch_R) else ():
            x_RD = x_BD.index_select(0, rows_R)
            sq_R = x_RD.square().sum(dim=1)
            # What rounding does to what follows, and to the scores of both centroids.
            slack_R = share * (sq_R.sqrt() + c_sq_K[longest].sqrt()).square()
            # As many centroids are as near: the nearest of each part of the pool.
            of_parts = _sq_distances(x_RD, sq_R, c_PD, c_sq_P).split(list(map(len, parts)), dim=1)
            far_R = torch.stack([to_part.amin(dim=1) for to_part in of_parts]).amax(dim=0)
            reach_R1 = (far_R + 4 * slack_R).sqrt()[:, None]
            to_centres_RG = _sq_distances(x_RD, sq_R - slack_R, centres_GD, centres_sq_G)
            out_RG = to_centres_RG.clamp_min_(0).sqrt_() > reach_R1 + radii_G
            # Not ``<=``: no bound with a NaN rules a group out.
            live_G = out_RG.all(dim=0).logical_not_()
            live_G[group_K[longest]] = True
            if int(sizes_G[live_G].sum()) > MOST_LEFT * k:
                with_all.append(rows_R)
            else:
                yield Bunch(rows_R, live_G[group_K].nonzero().squeeze(1))
    rows_R = torch.cat(with_all)
    if len(rows_R):
        yield Bunch(rows_R, None)


def second_in_bunches(
    assign_two: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], TwoNearest],
    rows: Rows,
    nearest_B: torch.Tensor,
    centroids_KD: torch.Tensor,
    groups: Groups,
) -> tuple[torch.Tensor, int]:
    """Squared distances to the second nearest, and how many comparisons `assign_two` made."""
    second_B, n_compared = torch.empty_like(rows.sq_norms_B), 0
    for rows_R, of_C in bunches(rows.x_BD, nearest_B, centroids_KD, groups, 2):
        some_CD = centroids_KD if of_C is None else centroids_KD.index_select(0, of_C)
        found = assign_two(rows.x_BD[rows_R], rows.sq_norms_B[rows_R], some_CD)
        second_B[rows_R] = found[2]
        n_compared += len(rows_R) * len(some_CD)
    return second_B, n_compared


def _centres(
    centroids_KD: torch.Tensor, group_K: torch.Tensor, sizes_G: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Centres of groups, and what is no less than the distance to any of their centroids."""
    c_KD = centroids_KD.double()
    sums_GD = c_KD.new_zeros((len(sizes_G), c_KD.shape[1])).index_add_(0, group_K, c_KD)
    centres_GD = (sums_GD / sizes_G[:, None]).to(centroids_KD.dtype)
    to_centre_K = (c_KD - centres_GD[group_K]).square_().sum(dim=1).sqrt_()
    radii_G = to_centre_K.new_zeros(len(sizes_G)).scatter_reduce_(0, group_K, to_centre_K, "amax")
    return centres_GD, radii_G.mul_(WIDER).to(centroids_KD.dtype)


def _sq_distances(
    x_RD: torch.Tensor, sq_norms_R: torch.Tensor, points_PD: torch.Tensor, sq_norms_P: torch.Tensor
) -> torch.Tensor:
    """Squared distances, to rounding."""
    return torch.addmm(sq_norms_P, x_RD, points_PD.T, alpha=-2).add_(sq_norms_R[:, None])
