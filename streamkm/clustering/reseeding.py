"""Rows that replace empty clusters, and those that starved, drawn from the stream.

During an epoch a small reservoir keeps rows drawn without replacement with
probability proportional to the squared distance from their centroid, by the
exponential keys of Efraimidis and Spirakis (2006): the row with the least
``Exp(1) / weight`` is drawn first. At the epoch's end the rows take the places
of the clusters that attracted nothing in it, whatever they had before. (A share
of the mean count was tried as the limit: it destroyed good clusters that were
simply small, and with them a hundred times the inertia.)

Judging at the end of an epoch, when every row has been seen, was chosen over
judging after some batches: where the rows of a file are sorted, a cluster may
lie in blocks that simply have not come yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from streamkm.clustering.scaling import Batch
    from streamkm.clustering.state import KMeansState

__all__ = ["draw_", "reseed_", "step_generator"]

#: Rows of one batch that may enter the reservoir, at most: enough for variety,
#: few enough that choosing them costs nothing beside the assignment.
DRAWN_PER_BATCH = 32

#: Rows of one batch that are offered to it, at most.
OFFERED_PER_BATCH = 4096

#: A row lies on its centroid if the squared distance is no more than this times
#: the dtype's eps times the row's squared length.
ROUNDING_EPS = 16


def step_generator(device: torch.device, *entropy: int) -> torch.Generator:
    """A generator for the draws of one step, made of its coordinates alone."""
    # Mixed by hand (splitmix64): Python's and torch's hashes promise nothing
    # across versions.
    mixed = 0
    for number in entropy:
        mixed = (mixed + number + 0x9E3779B97F4A7C15) % 2**64
        mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % 2**64
        mixed ^= mixed >> 31
    return torch.Generator(device).manual_seed(mixed >> 1)


def draw_(
    state: KMeansState,
    batch: Batch,
    sq_distances_B: torch.Tensor,
    generator: torch.Generator,
) -> None:
    """Offer the rows of a batch to the reservoir.

    Rows at distance 0, to rounding, are never taken, nor are rows of zeros with normalised
    data: they have no direction to put a centroid in.
    """
    # From all over the batch, and from another row on in each step: where rows come in
    # the same order every epoch, the ones between would else never have a chance.
    stride = -(-len(sq_distances_B) // OFFERED_PER_BATCH)
    offered = slice(generator.initial_seed() % stride, None, stride)
    x_BD, sq_norms_B = batch.x_BD[offered], batch.sq_norms_B[offered]
    sq_distances_B = sq_distances_B[offered]
    uniform_B = torch.rand(len(x_BD), dtype=torch.float64, device=x_BD.device, generator=generator)
    keys_B = -torch.log1p(-uniform_B) / sq_distances_B.double()
    keys_B.nan_to_num_(nan=torch.inf, posinf=torch.inf)
    # Of a row on its centroid rounding leaves a distance; placing another there is no gain.
    rounding_B = ROUNDING_EPS * torch.finfo(x_BD.dtype).eps * sq_norms_B
    keys_B.masked_fill_(sq_distances_B <= rounding_B, torch.inf)
    if batch.is_normalized:
        keys_B.masked_fill_(sq_norms_B == 0, torch.inf)
    n_reservoir = len(state.reservoir_keys_R)
    n_drawn = min(DRAWN_PER_BATCH, n_reservoir, len(x_BD))
    drawn_keys, drawn = torch.topk(keys_B, n_drawn, largest=False)
    keys = torch.cat((state.reservoir_keys_R, drawn_keys))
    rows = torch.cat((state.reservoir_RD, x_BD.index_select(0, drawn)))
    kept_keys, kept = torch.topk(keys, n_reservoir, largest=False)
    state.reservoir_keys_R.copy_(kept_keys)
    # Places without a row hold zeros, whichever of the infinite keys is there.
    kept_rows = rows.index_select(0, kept).masked_fill_(kept_keys.isinf()[:, None], 0)
    state.reservoir_RD.copy_(kept_rows)


def reseed_(state: KMeansState, starved_K: torch.Tensor) -> torch.Tensor:
    """Put the reservoir's rows in the places of starved clusters; returns which were moved.

    A moved cluster counts one row, the one that it now stands on.
    """
    keys_R, rows_RD = _distinct(state.reservoir_keys_R, state.reservoir_RD)
    n_reservoir = len(keys_R)
    # Starved clusters first, in order of index: a fixed number of places, so
    # that nothing depends on how many there are and the host need not know.
    places_R = torch.argsort(starved_K.logical_not(), stable=True)[:n_reservoir]
    moved_R = starved_K[places_R] & keys_R.isfinite()
    moved_R1 = moved_R[:, None]
    state.centroids_KD[places_R] = torch.where(moved_R1, rows_RD, state.centroids_KD[places_R])
    state.sums_KD[places_R] = torch.where(moved_R1, rows_RD.double(), state.sums_KD[places_R])
    state.counts_K[places_R] = torch.where(moved_R, 1, state.counts_K[places_R])
    state.n_reseeded += moved_R.sum()
    moved_K = torch.zeros_like(starved_K)
    moved_K[places_R] = moved_R
    return moved_K


def _distinct(keys_R: torch.Tensor, rows_RD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and rows in order, those of which there is an equal one before them at the end.

    Two centroids on equal rows would leave one of them without any.
    """
    _, group_R = torch.unique(rows_RD, dim=0, return_inverse=True)
    every_R = torch.arange(len(keys_R), device=keys_R.device)
    first_R = torch.full_like(every_R, len(keys_R)).scatter_reduce_(0, group_R, every_R, "amin")
    is_first_R = first_R.index_select(0, group_R) == every_R
    ordered_R, order_R = keys_R.masked_fill(~is_first_R, torch.inf).sort(stable=True)
    return ordered_R, rows_RD.index_select(0, order_R)
