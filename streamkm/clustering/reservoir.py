"""Reseeds empty clusters with rows drawn from the stream.

During an epoch a small reservoir keeps rows drawn without replacement, with
probability proportional to the squared distance from their centroid. It uses the
exponential keys of Efraimidis and Spirakis (2006): the row with the least
``Exp(1) / weight`` is drawn first. At the end of the epoch each cluster that got no
row in it takes a row of the reservoir, whatever it had before. The row leaves the
cluster that it was in, so that sums and counts stay those of a partition.

Rejected: reseeding clusters below a share of the mean count, which destroyed good
clusters that were simply small and raised the inertia a hundredfold; and judging
after some batches instead of a whole epoch, since in a sorted file the rows of a
cluster may lie in blocks that have not come yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from streamkm.kernels import OfferedRows, offer_

if TYPE_CHECKING:
    from streamkm.clustering.batch import Batch
    from streamkm.clustering.state import KMeansState
    from streamkm.distributed.world import World

__all__ = [
    "OFFERED_PER_BATCH",
    "Reseeding",
    "draw_",
    "gather_reservoir_",
    "mix",
    "offered_of",
    "reseed_",
    "step_generator",
]

#: Rows of one batch that are offered to the reservoir, at most, except in a closing pass.
OFFERED_PER_BATCH = 4096

#: Share of its mass that a cluster keeps, at least: the sum of less would be rounding error.
LEAST_SHARE = 1e-6


def step_generator(device: torch.device, *entropy: int, mixed: int = 0) -> torch.Generator:
    """A generator for the draws of one step, seeded by the numbers that name the step.

    `mixed` is what `mix` has made of the first of these numbers, which steps share.
    """
    return torch.Generator(device).manual_seed(mix(*entropy, mixed=mixed) >> 1)


def mix(*entropy: int, mixed: int = 0) -> int:
    """A number of 64 bits that is another for other numbers; `mixed` is that of those before."""
    # Mixed here (splitmix64): the hashes of Python and torch may change between versions.
    for number in entropy:
        mixed = (mixed + number + 0x9E3779B97F4A7C15) % 2**64
        mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % 2**64
        mixed ^= mixed >> 31
    return mixed


@dataclass(frozen=True)
class Reseeding:
    """Which clusters were reseeded, and from where."""

    filled_K: torch.Tensor
    """Clusters that now hold one row of the reservoir, bool."""
    donors_K: torch.Tensor
    """Clusters that these rows left, bool."""
    sq_distances: torch.Tensor
    """Weighted sum of the rows' squared distances to the centroids that they left."""


def draw_(
    state: KMeansState,
    batch: Batch,
    labels_B: torch.Tensor,
    sq_distances_B: torch.Tensor,
    generator: torch.Generator,
    *,
    n_offered: int = OFFERED_PER_BATCH,
) -> None:
    """Offer rows of a batch, at most `n_offered` and evenly spread, to the state's reservoir.

    A row is drawn by its squared distance times its weight. Never drawn are rows at distance 0,
    to rounding; rows of weight 0; and, with normalised data, rows of zeros, which have no
    direction to put a centroid in.
    """
    n_rows = batch.n_whole
    first, stride = offered_of(generator.initial_seed(), n_rows, n_offered)
    uniform = torch.rand(
        len(range(first, n_rows, stride)),
        dtype=torch.float64,
        device=labels_B.device,
        generator=generator,
    )
    positions_B, sq_norms_B, weights_B = batch.positions_B, batch.sq_norms_B, batch.weights_B
    if batch.numbers_B is not None:
        # The numbers drawn are those of the whole batch; this process has some of its rows.
        places = batch.numbers_B.long() - first
        own = ((places >= 0) & (places % stride == 0)).nonzero().squeeze(1)
        uniform = uniform[places[own] // stride]
        positions_B = own.int() if positions_B is None else positions_B[own]
        sq_norms_B, labels_B, sq_distances_B = sq_norms_B[own], labels_B[own], sq_distances_B[own]
        weights_B = None if weights_B is None else weights_B[own]
        first, stride = 0, 1
    offered = OfferedRows(
        batch.x_ND,
        positions_B,
        sq_norms_B,
        labels_B,
        sq_distances_B,
        weights_B,
        skips_zeros=batch.is_normalized,
        first=first,
        stride=stride,
    )
    offer_(state.reservoir, offered, uniform)


def offered_of(seed: int, n_rows: int, n_offered: int = OFFERED_PER_BATCH) -> tuple[int, int]:
    """The first row of a batch that is offered, and from how many one is."""
    stride = max(-(-n_rows // n_offered), 1)
    # The first row differs from step to step: if rows come in the same order every epoch, the
    # rows between would otherwise never be offered.
    return seed % stride, stride


def gather_reservoir_(state: KMeansState, world: World) -> None:
    """Keep the rows with the least keys of all processes, in each of them."""
    if world.size == 1:
        return
    _, keys_R, *_ = reservoir = state.reservoir
    order = torch.argsort(torch.cat(world.gather_rows(keys_R)), stable=True)[: len(keys_R)]
    for own in reservoir:
        if own.numel():
            own.copy_(torch.cat(world.gather_rows(own)).index_select(0, order))


def reseed_(state: KMeansState, starved_K: torch.Tensor) -> Reseeding:
    """Give each starved cluster, in order of index, a row of the reservoir, least key first.

    Only sums and counts change; the caller moves the centroids. Passed over are rows equal to
    one that was taken, the last row of a cluster, and rows that hold nearly all of its mass.
    """
    filled_K, donors_K = torch.zeros_like(starved_K), torch.zeros_like(starved_K)
    sq_distances = torch.zeros_like(state.inertia)
    # On the host, row by row: it is rare, and a GPU would add up in no fixed order.
    places = starved_K.nonzero().squeeze(1).tolist()
    if places:
        donors, keys = state.reservoir_labels_R.tolist(), state.reservoir_keys_R.tolist()
        n_left = dict(
            zip(donors, state.epoch_counts_K[state.reservoir_labels_R].tolist(), strict=True)
        )
        seen: set[bytes] = set()
        weights = state.reservoir_weights_R.tolist() or [1.0] * len(keys)
        contents = [row.tobytes() for row in state.reservoir_RD.cpu().numpy()]
        for row_D, content, donor, key, weight in zip(
            state.reservoir_RD.double(), contents, donors, keys, weights, strict=True
        ):
            if not places or key == torch.inf:
                break
            if content in seen or n_left[donor] < 2:
                continue
            if weight > (1 - LEAST_SHARE) * float(state.whole_mass_K[donor]):
                continue
            seen.add(content)
            n_left[donor] -= 1
            place = places.pop(0)
            sq_distances += weight * (row_D - state.centroids_KD[donor].double()).square().sum()
            # The donor loses the share of this row that it remembers of all its rows, on average.
            # It remembers more than it got where the centroid of the seeding counts as rows.
            share = (state.mass_K[donor] / state.whole_mass_K[donor]).clamp_max(1)
            lost = weight * share
            state.sums_KD[donor] -= lost * row_D
            state.mass_K[donor] -= lost
            state.counts_K[donor] -= 1
            state.sums_KD[place], state.mass_K[place] = weight * row_D, weight
            state.counts_K[place] = 1
            if state.is_weighted:
                state.weights_K[donor] -= weight
                state.weights_K[place] = weight
            donors_K[donor] = filled_K[place] = True
    state.n_reseeded += filled_K.sum()
    return Reseeding(filled_K, donors_K, sq_distances)
