"""The few rows that prices leave over: each goes to the next cluster, in chains of neighbours.

A basic optimum of the transport problem has up to K - 1 rows that are equally well off in two
clusters, and no prices settle these. So one pass gathers, for each cluster, the rows that lose
least by going to their second best, and successive shortest paths choose among them: from a cluster
of too many rows to its neighbour, from there to the next, to one that has room. The chosen rows
and their new labels are part of the rule of labels.

What is gathered is bounded, so that some may stay too many: the last pass gives these away in the
order of the rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from streamkm.clustering.sizes import NEVER
from streamkm.kernels import sq_distances_between

if TYPE_CHECKING:
    from streamkm.bounds import Bounds
    from streamkm.clustering.batch import Batch
    from streamkm.clustering.sizes import PricedKernel

__all__ = ["Pool", "offer_", "settle_"]

#: Distances in float64 that are held at a time.
TILE_ELEMENTS = 1 << 18
#: Arcs that are looked at in all; a search that is dearer is left to the last pass.
MOST_ARCS = 1 << 30
#: Bounds weigh this many times what any row could lose.
FAR_ABOVE = 1e6


class Pool(NamedTuple):
    """Rows that may go to their second best cluster; places without a row come last."""

    rows_P: torch.Tensor
    """Their numbers, int64; `NEVER` where there is none."""
    from_P: torch.Tensor
    """Their labels by price, int64."""
    to_P: torch.Tensor
    """Their second best, int64."""
    losses_P: torch.Tensor
    """What they lose by it, prices included, float64; infinite where there is none."""


def offer_(
    pool: Pool,
    kernel: PricedKernel,
    batch: Batch,
    centroids_KD: torch.Tensor,
    prices_K: torch.Tensor,
    reach_K: torch.Tensor,
    start_row: int,
) -> torch.Tensor:
    """Add the rows of a batch that lose at most `reach_K`; returns the labels of all."""
    labels_B, least_B, second_B = kernel.assign_two(batch.x_BD, batch.sq_norms_B, centroids_KD)
    is_near_B = (second_B - least_B).clamp_min_(0) <= reach_K[labels_B]
    if batch.dropped_B is not None:
        is_near_B &= ~batch.dropped_B
    k, near = len(centroids_KD), is_near_B.nonzero().squeeze(1)
    if k == 1 or not len(near):
        return labels_B
    found = [pool]
    points_KD = centroids_KD.double()
    sq_norms_K = points_KD.square().sum(dim=1)
    for some in near.split(max(TILE_ELEMENTS // k, 1)):
        own_S = labels_B[some]
        apart_SK = sq_distances_between(batch.x_BD[some].double(), points_KD, sq_norms_K)
        apart_SK += prices_K
        here_S = apart_SK.gather(1, own_S[:, None]).squeeze(1)
        there_S, to_S = apart_SK.scatter(1, own_S[:, None], torch.inf).min(dim=1)
        found.append(Pool(some + start_row, own_S, to_S, (there_S - here_S).clamp_min_(0)))
    for kept_P, all_Q in zip(pool, _first(found, k, len(pool.rows_P)), strict=True):
        kept_P.copy_(all_Q)
    return labels_B


def _first(found: list[Pool], k: int, n: int) -> Pool:
    """The first `n` of all: of each pair of clusters the least losses, then the second least.

    What is left out would be left out in any order in which rows come.
    """
    is_row = [each.rows_P != NEVER for each in found]
    if sum(int(each.sum()) for each in is_row) > n:
        every = Pool(*(torch.cat(parts) for parts in zip(*found, strict=True)))
        every = _sorted(every, k)
        pair_Q = every.from_P * k + every.to_P
        n_before_Q = torch.searchsorted(pair_Q, pair_Q)
        rank_Q = torch.arange(len(pair_Q), device=pair_Q.device) - n_before_Q
        rank_Q = torch.where(every.rows_P == NEVER, NEVER, rank_Q)
        order = every.rows_P.argsort(stable=True)
        order = order[every.losses_P[order].argsort(stable=True)]
        order = order[rank_Q[order].argsort(stable=True)][:n]
        return Pool(*(each[order] for each in every))
    rows = [Pool(*(t[is_in] for t in each)) for each, is_in in zip(found, is_row, strict=True)]
    rows.append(Pool(*(each[~is_row[0]] for each in found[0])))
    return Pool(*(torch.cat(parts)[:n] for parts in zip(*rows, strict=True)))


def _sorted(pool: Pool, k: int) -> Pool:
    """By pair of clusters, then by loss, then by row; places without a row last."""
    pair_P = torch.where(pool.rows_P == NEVER, NEVER, pool.from_P * k + pool.to_P)
    order = pool.rows_P.argsort(stable=True)
    order = order[pool.losses_P[order].argsort(stable=True)]
    order = order[pair_P[order].argsort(stable=True)]
    return Pool(*(each[order] for each in pool))


def settle_(pool: Pool, counts_K: torch.Tensor, prices_K: torch.Tensor, bounds: Bounds) -> int:
    """Keep the rows that are to go to their second best, in ascending order; returns their number.

    `counts_K` are the sizes by price alone.
    """
    device = pool.rows_P.device
    on_host = _sorted(Pool(*(each.cpu() for each in pool)), len(counts_K))
    n_rows = int((on_host.rows_P != NEVER).sum())
    from_A, to_A, losses_A = (each[:n_rows].numpy() for each in on_host[1:])
    is_chosen_A = _chosen(
        from_A, to_A, losses_A, counts_K.cpu().numpy().copy(), prices_K.cpu().numpy(), bounds
    )
    chosen = torch.from_numpy(is_chosen_A.nonzero()[0])
    chosen = chosen[on_host.rows_P[chosen].argsort()].to(device)
    kept = [each.to(device)[chosen] for each in on_host]
    for all_P, kept_C, nothing in zip(pool, kept, (NEVER, 0, 0, torch.inf), strict=True):
        all_P.fill_(nothing)
        all_P[: len(kept_C)] = kept_C
    return len(chosen)


def _chosen(
    from_A: np.ndarray,
    to_A: np.ndarray,
    losses_A: np.ndarray,
    counts_K: np.ndarray,
    prices_K: np.ndarray,
    bounds: Bounds,
) -> np.ndarray:
    """Which rows go, of those that are sorted by pair of clusters and loss.

    Each path is the cheapest that remains. It takes a row from its first cluster and leaves one
    more in its last: what that is worth are their prices, and far more if it brings one of them
    within bounds. On the way rows that went before may go back.
    """
    is_chosen_A = np.zeros(len(from_A), bool)
    if not len(from_A):
        return is_chosen_A
    k = len(counts_K)
    first_G = np.flatnonzero(np.diff(from_A * k + to_A, prepend=-1))
    ends_G = np.append(first_G[1:], len(from_A))
    from_G, to_G, next_G = from_A[first_G], to_A[first_G], first_G.copy()
    starts_V, stops_V = np.concatenate((from_G, to_G)), np.concatenate((to_G, from_G))
    scale = float(prices_K.max() + losses_A.max()) or 1.0
    n_looked = 0
    while n_looked < MOST_ARCS:
        forth_G = np.where(next_G < ends_G, losses_A[np.minimum(next_G, len(losses_A) - 1)], np.inf)
        back_G = np.where(next_G > first_G, -losses_A[next_G - 1], np.inf)
        costs_V = np.concatenate((forth_G, back_G))
        at_K = np.where(counts_K > bounds.most, prices_K - FAR_ABOVE * scale, prices_K)
        at_K = np.where(counts_K > bounds.least, at_K, np.inf)
        came_K = np.full(k, -1)
        for _ in range(k):
            n_looked += len(costs_V)
            reached_V = at_K[starts_V] + costs_V
            better = np.flatnonzero(reached_V < at_K[stops_V] - 1e-12 * scale)
            if not len(better):
                break
            # The best of those that lead to a cluster comes last, and so stays.
            better = better[np.argsort(-reached_V[better], kind="stable")]
            at_K[stops_V[better]] = reached_V[better]
            came_K[stops_V[better]] = better
        worth_K = prices_K + np.where(counts_K < bounds.least, FAR_ABOVE * scale, 0)
        gain_K = np.where(counts_K < bounds.most, at_K - worth_K, np.inf)
        last = int(gain_K.argmin())
        path = _path(last, came_K, starts_V)
        if not path or gain_K[last] >= -1e-9 * scale:
            break
        counts_K[last] += 1
        counts_K[starts_V[path[-1]]] -= 1
        for arc in path:
            next_G[arc % len(next_G)] += 1 if arc < len(next_G) else -1
    for first, end in zip(first_G, next_G, strict=True):
        is_chosen_A[first:end] = True
    return is_chosen_A


def _path(last: int, came_K: np.ndarray, starts_V: np.ndarray) -> list[int]:
    """The arcs that lead to `last`, backwards; none if rounding has made them a circle."""
    path: list[int] = []
    while came_K[last] >= 0:
        if len(path) == len(came_K):
            return []
        path.append(int(came_K[last]))
        last = int(starts_V[path[-1]])
    return path
