"""Rows that make clusters of their own where clusters are empty, drawn from the stream.

During an epoch a small reservoir keeps rows drawn without replacement with
probability proportional to the squared distance from their centroid, by the
exponential keys of Efraimidis and Spirakis (2006): the row with the least
``Exp(1) / weight`` is drawn first. At the epoch's end the rows take the places
of the clusters that attracted nothing in it, whatever they had before, and leave
the clusters that they were in: sums and counts stay those of a partition. (A share
of the mean count was tried as the limit: it destroyed good clusters that were
simply small, and with them a hundred times the inertia.)

Judging at the end of an epoch, when every row has been seen, was chosen over
judging after some batches: where the rows of a file are sorted, a cluster may
lie in blocks that simply have not come yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from streamkm.kernels.extension import address, can_weigh, instruction_sets

if TYPE_CHECKING:
    from streamkm.clustering.batch import Batch
    from streamkm.clustering.state import KMeansState

__all__ = ["Reseeding", "draw_", "reseed_", "step_generator"]

#: Rows of one batch that may enter the reservoir, at most: enough for variety,
#: few enough that choosing them costs nothing beside the assignment.
DRAWN_PER_BATCH = 32

#: Rows of one batch that are offered to it, at most.
OFFERED_PER_BATCH = 4096

#: So many logarithms torch takes in one thread.
SERIAL_ELEMENTS = 1024

#: A cluster keeps at least this share of its weight: what rounding leaves of less is no mean.
LEAST_SHARE = 1e-6

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


@dataclass(frozen=True)
class Reseeding:
    """Which clusters were reseeded, and from where."""

    filled_K: torch.Tensor
    """Clusters that now hold one row of the reservoir, bool."""
    donors_K: torch.Tensor
    """Clusters that the rows were taken from, bool."""
    sq_distances: torch.Tensor
    """Sum of the rows' squared distances to the centroids that they left, times their weights."""


def draw_(
    state: KMeansState,
    batch: Batch,
    labels_B: torch.Tensor,
    sq_distances_B: torch.Tensor,
    generator: torch.Generator,
    *,
    n_offered: int = OFFERED_PER_BATCH,
) -> None:
    """Offer the rows of a batch, about `n_offered` at most, to the reservoir.

    Squared distances count as often as rows weigh. Rows at distance 0, to rounding, are never
    taken, nor are those of weight 0, nor rows of zeros with normalised data: they have no
    direction to put a centroid in.
    """
    # From all over the batch, and from another row on in each step: where rows come in
    # the same order every epoch, the ones between would else never have a chance.
    device, n_rows = sq_distances_B.device, len(sq_distances_B)
    stride = -(-n_rows // n_offered)
    first = generator.initial_seed() % stride
    chances = sq_distances_B[first::stride].contiguous().double()
    uniform = torch.rand(len(chances), dtype=torch.float64, device=device, generator=generator)
    if _can_compile(state, batch, labels_B):
        _draw_compiled_(state, batch, labels_B, chances, uniform, first, stride)
    else:
        offered = torch.arange(first, n_rows, stride, device=device)
        _draw_in_torch_(state, batch, labels_B, sq_distances_B, chances, uniform, offered)


def _draw_in_torch_(
    state: KMeansState,
    batch: Batch,
    labels_B: torch.Tensor,
    sq_distances_B: torch.Tensor,
    chances: torch.Tensor,
    uniform: torch.Tensor,
    offered: torch.Tensor,
) -> None:
    """The rest of `draw_`, of the rows `offered`, of which `chances` are the squared distances."""
    if batch.weights_B is not None:
        chances = chances * batch.weights_B[offered]
    if chances.device.type == "cpu":
        # Of -log(1 - u) >= u: the others cannot come before the last row of the reservoir. To
        # wait for their number costs nothing here.
        entering = (uniform < chances * state.reservoir_keys_R.max()).nonzero().squeeze(1)
        if len(entering) == 0:
            return
        offered, uniform, chances = offered[entering], uniform[entering], chances[entering]
    # In parts that torch does not share among its threads: those then wait for more, and hold
    # the cores that the kernel's next loop could have.
    for part in uniform.neg_().split(SERIAL_ELEMENTS):
        part.log1p_()
    keys = -uniform / chances
    keys.nan_to_num_(nan=torch.inf, posinf=torch.inf)
    # Of a row on its centroid rounding leaves a distance; placing another there is no gain.
    sq_norms = batch.sq_norms_B[offered]
    rounding = ROUNDING_EPS * torch.finfo(sq_norms.dtype).eps * sq_norms
    keys.masked_fill_(sq_distances_B[offered] <= rounding, torch.inf)
    if batch.is_normalized:
        keys.masked_fill_(sq_norms == 0, torch.inf)
    n_reservoir = len(state.reservoir_keys_R)
    n_drawn = min(DRAWN_PER_BATCH, n_reservoir, len(keys))
    drawn_keys, drawn = torch.topk(keys, n_drawn, largest=False)
    drawn = offered[drawn]
    keys = torch.cat((state.reservoir_keys_R, drawn_keys))
    rows = torch.cat((state.reservoir_RD, batch.take(drawn).to(state.reservoir_RD.dtype)))
    labels = torch.cat((state.reservoir_labels_R, labels_B[drawn]))
    kept_keys, kept = torch.topk(keys, n_reservoir, largest=False)
    state.reservoir_keys_R.copy_(kept_keys)
    # Places without a row hold zeros, whichever of the infinite keys is there.
    vacant_R = kept_keys.isinf()
    kept_rows = rows.index_select(0, kept).masked_fill_(vacant_R[:, None], 0)
    state.reservoir_RD.copy_(kept_rows)
    state.reservoir_labels_R.copy_(labels.index_select(0, kept).masked_fill_(vacant_R, 0))
    if batch.weights_B is not None:
        weights = torch.cat((state.reservoir_weights_R, batch.weights_B[drawn]))[kept]
        state.reservoir_weights_R.copy_(weights.masked_fill_(vacant_R, 0))


def _can_compile(state: KMeansState, batch: Batch, labels_B: torch.Tensor) -> bool:
    """Whether the extension, which sees addresses only, takes these."""
    x_ND, rows_RD = batch.x_ND, state.reservoir_RD
    tensors = (x_ND, rows_RD, batch.sq_norms_B, labels_B, state.reservoir_keys_R)
    return (
        bool(instruction_sets())
        and all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in tensors)
        and {x_ND.dtype, rows_RD.dtype, batch.sq_norms_B.dtype}
        in ({torch.float32}, {torch.float64})
        and labels_B.dtype == torch.int64
        and len(labels_B) == len(batch.sq_norms_B) == len(batch)
        and can_weigh(batch.weights_B, len(labels_B))
        and (batch.weights_B is None) == (len(state.reservoir_weights_R) == 0)
    )


def _draw_compiled_(
    state: KMeansState,
    batch: Batch,
    labels_B: torch.Tensor,
    sq_distances: torch.Tensor,
    uniform: torch.Tensor,
    first: int,
    stride: int,
) -> None:
    """The rest of `draw_`, of rows `first`, `first + stride` and so on."""
    x_ND, rows_RD = batch.x_ND, state.reservoir_RD
    weights_B = None if batch.weights_B is None else batch.weights_B.contiguous()
    instruction_sets()[0].functions.offer(
        x_ND.dtype == torch.float64,
        uniform.data_ptr(),
        sq_distances.data_ptr(),
        labels_B.data_ptr(),
        batch.sq_norms_B.data_ptr(),
        address(weights_B),
        address(batch.positions_B),
        x_ND.data_ptr(),
        rows_RD.data_ptr(),
        state.reservoir_keys_R.data_ptr(),
        state.reservoir_labels_R.data_ptr(),
        address(None if weights_B is None else state.reservoir_weights_R),
        ROUNDING_EPS * torch.finfo(x_ND.dtype).eps,
        first,
        stride,
        len(uniform),
        *x_ND.shape,
        len(rows_RD),
        DRAWN_PER_BATCH,
        batch.is_normalized,
    )


def reseed_(state: KMeansState, starved_K: torch.Tensor) -> Reseeding:
    """Give starved clusters, in order of index, a row of the reservoir each, least key first.

    Only sums and counts change: moving the centroids is for the caller. A row that equals
    one before it is passed over, and so is the last row that its own cluster has.
    """
    filled_K, donors_K = torch.zeros_like(starved_K), torch.zeros_like(starved_K)
    sq_distances = torch.zeros_like(state.inertia)
    # On the host, row by row: it is rare, and a GPU would add up in any order.
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
            if weight > (1 - LEAST_SHARE) * float(state.masses_K[donor]):
                continue
            seen.add(content)
            n_left[donor] -= 1
            place = places.pop(0)
            sq_distances += weight * (row_D - state.centroids_KD[donor].double()).square().sum()
            state.sums_KD[donor] -= weight * row_D
            state.counts_K[donor] -= 1
            state.sums_KD[place], state.counts_K[place] = weight * row_D, 1
            if state.is_weighted:
                state.weights_K[donor] -= weight
                state.weights_K[place] = weight
            donors_K[donor] = filled_K[place] = True
    state.n_reseeded += filled_K.sum()
    return Reseeding(filled_K, donors_K, sq_distances)
