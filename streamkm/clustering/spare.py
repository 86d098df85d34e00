"""Gives centroids of a few rows to larger clusters that save more when halved.

A centroid that seeding put on a lone row stays there, since no other row is near. In the sample
that row may have cost much; among millions of rows a large cluster may cost more. After the last
epoch of mini-batches, and before the closing pass, two numbers are compared:

- What is lost without a centroid: the rise of the cost if its cluster joins the nearest other one
  (Ward 1963).
- What is gained by halving a cluster. Halves of a Gaussian save 2 / pi of its variance along the
  direction between them, and rows spread evenly over D features have 1 / D of their squared
  distances in a direction. Data that lies along fewer directions gains more than that.

A cluster's squared distances are estimated from the reservoir, whose rows are drawn by squared
distance, in two ways; the lesser estimate counts. The mean over all rows of a cluster is the
harmonic mean over its drawn rows. And a cluster's part of the inertia is its part of the drawn
rows. Of the gain only a half counts. Rows that alone cost a great deal count nothing, since they
say nothing of the other rows of their cluster. Clusters of less than the mean mass are not halved:
they may have moved far in the epoch, so that neither estimate holds.

The new centroid and the old one begin on opposite sides of the old place, in the direction of a
drawn row. The closing pass then finds the halves (Linde, Buzo & Gray 1980).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from streamkm.clustering.seeding.exchange import Part, choose_exchanges, cost_of_joining
from streamkm.kernels import normalized, sq_distances_between

if TYPE_CHECKING:
    from streamkm.clustering.state import KMeansState

__all__ = ["spend_spare_"]

#: Drawn rows that a cluster to be halved must have. One alone may be all that lies far off.
LEAST_DRAWN = 2
#: The part of an estimated gain that counts.
SURE_SHARE = 0.5
#: Distances that are held at a time.
TILE_ELEMENTS = 1 << 22


def spend_spare_(state: KMeansState, *, spherical: bool) -> int:
    """Move centroids of a few rows into other clusters where that pays; return how many.

    `state` is that after the last epoch. Only its centroids change, so that a closing pass must
    follow. No more centroids are judged than the reservoir has rows, those of the least mass.
    """
    mass_K = state.epoch_weights_K if state.is_weighted else state.epoch_counts_K.double()
    drawn = state.reservoir_keys_R.isfinite().nonzero().squeeze(1)
    if not len(drawn):
        return 0
    loss_K, heir_K = _losses(state, len(drawn), mass_K, spherical=spherical)
    if not (loss_K < _surely_gained(state.inertia, state)).any():
        return 0  # As if all of the inertia were one cluster's.
    gain_K, row_K = _gains(state, drawn, mass_K)
    pairs = choose_exchanges(gain_K.tolist(), loss_K.tolist(), heir_K.tolist())
    if pairs:
        halved, given_up = torch.tensor(pairs, device=mass_K.device).unbind(1)
        old_PD = state.centroids_KD[halved].double()
        towards_PD = state.reservoir_RD[row_K[halved]].double() - old_PD
        # The distance at which this many rows save that much.
        step_P = (gain_K[halved] / SURE_SHARE / mass_K[halved]).sqrt_()
        towards_PD *= (step_P / torch.linalg.vector_norm(towards_PD, dim=1))[:, None]
        for places, new_PD in ((halved, old_PD - towards_PD), (given_up, old_PD + towards_PD)):
            placed_PD = normalized(new_PD) if spherical else new_PD
            state.centroids_KD[places] = placed_PD.to(state.centroids_KD.dtype)
    return len(pairs)


def _surely_gained(costs_K: torch.Tensor, state: KMeansState) -> torch.Tensor:
    """What halving clusters of these squared distances surely gains."""
    return SURE_SHARE * 2 / (math.pi * state.centroids_KD.shape[1]) * costs_K


def _gains(
    state: KMeansState, drawn: torch.Tensor, mass_K: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What halving each cluster surely gains, and the place of a drawn row to halve it by."""
    k = state.k
    x_RD = state.reservoir_RD[drawn]
    label_R = _nearest(x_RD, state.centroids_KD)
    sq_R = (x_RD.double() - state.centroids_KD[label_R].double()).square().sum(dim=1)
    costs_R = sq_R * state.reservoir_weights_R[drawn] if state.is_weighted else sq_R
    is_light_R = costs_R <= state.inertia / len(drawn)
    rest = (state.inertia - costs_R[~is_light_R].sum()).clamp_min_(0)
    drawn, label_R, sq_R = drawn[is_light_R], label_R[is_light_R], sq_R[is_light_R]

    n_K = torch.bincount(label_R, minlength=k)
    # On the host: a GPU would add up in no fixed order.
    inverse_K = torch.bincount(label_R.cpu(), (1 / sq_R).cpu(), minlength=k).to(mass_K.device)
    costs_K = torch.minimum(mass_K * n_K / inverse_K, n_K / max(len(drawn), 1) * rest)
    gain_K = _surely_gained(costs_K, state)
    row_K = torch.zeros_like(n_K).scatter_reduce_(0, label_R, drawn, "amin", include_self=False)
    return gain_K.masked_fill_((n_K < LEAST_DRAWN) | (mass_K < mass_K.mean()), 0), row_K


def _losses(
    state: KMeansState, n_judged: int, mass_K: torch.Tensor, *, spherical: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """What is lost without each cluster, and the nearest other one.

    The loss is infinite but for the `n_judged` of the least mass, and where the other has less.
    Clusters without a row in the epoch are neither judged nor heirs: its end has filled them.
    """
    heir_K = torch.arange(state.k, device=mass_K.device)
    loss_K = torch.full_like(mass_K, torch.inf)
    others = mass_K.nonzero().squeeze(1)
    if len(others) < 2:
        return loss_K, heir_K
    few = others[mass_K[others].argsort(stable=True)[:n_judged]]
    heir_K[few] = others[
        _nearest(state.centroids_KD[few], state.centroids_KD[others], (few, others))
    ]
    own, heirs = (
        Part(state.sums_KD[places] * (mass_K / state.mass_K)[places, None], mass_K[places])
        for places in (few, heir_K[few])
    )
    loss_F = cost_of_joining(own, heirs, spherical=spherical)
    loss_K[few] = loss_F.masked_fill_(own.mass_K > heirs.mass_K, torch.inf)
    return loss_K, heir_K


def _nearest(
    x_ND: torch.Tensor, c_KD: torch.Tensor, others: tuple[torch.Tensor, torch.Tensor] | None = None
) -> torch.Tensor:
    """Nearest centroid of each point; with `others`, one of another number."""
    sq_norms_K, found = c_KD.square().sum(dim=1), []
    tile = max(TILE_ELEMENTS // len(c_KD), 1)
    for start in range(0, len(x_ND), tile):
        part = slice(start, start + tile)
        between_PK = sq_distances_between(x_ND[part], c_KD, sq_norms_K)
        if others is not None:
            number_N, number_K = others
            between_PK.masked_fill_(number_N[part, None] == number_K, torch.inf)
        found.append(between_PK.argmin(dim=1))
    return torch.cat(found)
