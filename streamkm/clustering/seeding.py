"""Where the centroids begin: rows of a sample, or an array from a file."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from streamkm.clustering.reseeding import step_generator

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["kmeans_plusplus", "random_rows"]

#: The largest weight of a draw, as an integer: 2^23 rows of it still add up in int64.
WEIGHT_STEPS = 2.0**40

#: Tells the draws of seeding apart from those of the steps.
_SEEDING = -1


def random_rows(
    sample_SD: torch.Tensor, k: int, seed: int, weights_S: torch.Tensor | None = None
) -> torch.Tensor:
    """`k` rows of the sample, drawn by weight without replacement; shape (k, D)."""
    generator = step_generator(sample_SD.device, seed, _SEEDING)
    if weights_S is not None:
        uniform_S = torch.rand(
            len(weights_S), dtype=torch.float64, device=weights_S.device, generator=generator
        )
        keys_S = -torch.log1p(-uniform_S) / weights_S
        return sample_SD.index_select(0, torch.topk(keys_S, k, largest=False).indices)
    order_S = torch.randperm(len(sample_SD), generator=generator, device=sample_SD.device)
    return sample_SD.index_select(0, order_S[:k])


def kmeans_plusplus(
    sample_SD: torch.Tensor,
    k: int,
    seed: int,
    weights_S: torch.Tensor | None = None,
    *,
    on_round: Callable[[int], None] = lambda _: None,
) -> torch.Tensor:
    """Greedy k-means++ (Arthur & Vassilvitskii 2007) on a sample.

    Each centroid is the best of ``2 + log k`` rows drawn with probability
    proportional to the squared distance from the centroids so far, as in the
    authors' own implementation and scikit-learn's.

    Parameters
    ----------
    sample_SD : Tensor of shape (S, D), S >= k
        Rows in the scaled space, all finite.
    k : int
        Number of centroids.
    seed : int
        Decides the draws.
    weights_S : Tensor of shape (S,), float64, optional
        How much each row counts, more than 0.
    on_round : callable
        Called with the number of centroids found so far; may raise to stop.

    Returns
    -------
    Tensor of shape (k, D)
        Rows of the sample, none of them twice; equal ones only if the sample
        has too few others (to rounding).
    """
    device, n_rows = sample_SD.device, len(sample_SD)
    generator = step_generator(device, seed, _SEEDING)
    n_trials = 2 + int(math.log(k))
    sq_norms_S = torch.linalg.vector_norm(sample_SD, dim=1).square_()
    chosen = torch.empty(k, dtype=torch.int64, device=device)
    if weights_S is None:
        chosen[0] = torch.randint(n_rows, (), generator=generator, device=device)
    else:
        chosen[0] = _draw(weights_S, 1, generator)[0]
    closest_S = _sq_distances(sample_SD, sq_norms_S, chosen[:1])[0]
    left_S = torch.ones_like(sq_norms_S).index_fill_(0, chosen[:1], 0)
    for i in range(1, k):
        on_round(i)
        # Where no row is at a distance that rounding leaves, any other row will do.
        chances_S = torch.where(closest_S.max() > 0, closest_S, left_S)
        if weights_S is not None:
            chances_S = chances_S * weights_S
        candidates = _draw(chances_S, n_trials, generator)
        distances_LS = _sq_distances(sample_SD, sq_norms_S, candidates)
        torch.minimum(distances_LS, closest_S, out=distances_LS)
        weighted_LS = distances_LS if weights_S is None else distances_LS * weights_S
        best = weighted_LS.sum(dim=1, dtype=torch.float64).argmin()
        # index_select, not []: on a GPU an index taken from the device must not
        # make the host wait k times.
        chosen[i : i + 1] = candidates.index_select(0, best[None])
        closest_S = distances_LS.index_select(0, best[None])[0]
        left_S.index_fill_(0, chosen[i : i + 1], 0)
    return sample_SD.index_select(0, chosen)


def _draw(weights_S: torch.Tensor, n_draws: int, generator: torch.Generator) -> torch.Tensor:
    """Positions drawn with replacement, with probability proportional to the weights.

    Weights are rounded to integers first: a running sum of floats depends on
    the order in which a GPU adds them up, one of integers does not.
    """
    weights_S = weights_S.double()
    largest = weights_S.max().clamp_min(torch.finfo(torch.float64).tiny)
    cumulative_S = (weights_S / largest * WEIGHT_STEPS).long().cumsum(dim=0)
    uniform = torch.rand(n_draws, dtype=torch.float64, device=weights_S.device, generator=generator)
    drawn = torch.searchsorted(cumulative_S, (uniform * cumulative_S[-1]).long(), right=True)
    return drawn.clamp_(max=len(weights_S) - 1)


def _sq_distances(
    sample_SD: torch.Tensor, sq_norms_S: torch.Tensor, candidates_L: torch.Tensor
) -> torch.Tensor:
    """Squared distances of a few rows of the sample to all of them, (L, S)."""
    rows_LD = sample_SD.index_select(0, candidates_L)
    norms_L1 = sq_norms_S.index_select(0, candidates_L)[:, None]
    distances_LS = torch.addmm(sq_norms_S, rows_LD, sample_SD.T, alpha=-2)
    distances_LS.add_(norms_L1).clamp_min_(0)
    # Rounding must not leave a chosen row at a distance from itself: it could
    # be drawn again.
    return distances_LS.scatter_(1, candidates_L[:, None], 0)
