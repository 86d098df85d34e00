"""Mini-batch k-means: the centroids move after every batch (Sculley 2010).

A centroid is the mean of all rows that were ever assigned to it, kept as a sum
in float64 and an integer count. That is scikit-learn's update with per-cluster
learning rates of 1 / count, without its float counts, which stop growing at
2^24 in float32. Where rows have weights, sums are weighted and divided by the sum
of the weights, as there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from streamkm.clustering.moves import Sums, move_centroids_
from streamkm.clustering.reservoir import draw_, reseed_, step_generator
from streamkm.clustering.state import BY_NO_IMPROVEMENT, BY_TOL, RUNNING
from streamkm.kernels import Assignment, Rows, TwoNearest, add_by_label, sq_distances_to

if TYPE_CHECKING:
    from streamkm.clustering.batch import Batch
    from streamkm.clustering.state import KMeansState
    from streamkm.kernels import Kernel

__all__ = ["MiniBatch"]


@dataclass(frozen=True)
class MiniBatch:
    """Updates after every batch, in place."""

    kernel: Kernel
    n_rows: int
    """Rows of the whole array."""
    seed: int
    spherical: bool = False
    max_no_improvement: int | None = None

    def update_(self, state: KMeansState, batch: Batch, *, epoch: int, index: int) -> None:
        """Assign the rows of `batch`, the `index`-th of `epoch`, and move their centroids.

        A state that has stopped is left as it is, to the bit: the host finds
        out late that a run is over, and what it has queued by then must not matter.
        """
        live = state.stop == RUNNING
        if live.device.type == "cpu" and not live:
            return  # Asking costs nothing here; a GPU would have to be waited for.
        (labels_B, sq_distances_B), (sums, counts_K, weights_K) = nearest_and_sums(
            self.kernel, batch, state.centroids_KD, spherical=self.spherical, exact=False
        )
        if batch.dropped_B is not None:
            sq_distances_B.masked_fill_(batch.dropped_B, 0)
            state.n_dropped += batch.dropped_B.sum() * live
        counts_K *= live
        weights_K *= live
        generator = step_generator(labels_B.device, self.seed, epoch, index)
        draw_(state, batch, labels_B, sq_distances_B * live, generator)
        state.counts_K += counts_K
        state.epoch_counts_K += counts_K
        state.weights_K += weights_K
        state.epoch_weights_K += weights_K
        shift = move_centroids_(state, counts_K > 0, spherical=self.spherical, added=sums)
        n_rows = counts_K.sum()
        mass = weights_K.sum() if state.is_weighted else n_rows
        self._watch(state, weighted_sum(batch, sq_distances_B), n_rows, mass, shift, live)

    def finish_epoch_(self, state: KMeansState) -> None:
        """Reseed the clusters to which the epoch brought no row.

        Few rows are no reason: a small cluster far from the others may save
        more inertia than all of them together.
        """
        live = state.stop == RUNNING
        reseeding = reseed_(state, (state.epoch_counts_K == 0) & live)
        changed_K = reseeding.filled_K | reseeding.donors_K
        move_centroids_(state, changed_K, spherical=self.spherical)

    def _watch(
        self,
        state: KMeansState,
        inertia: torch.Tensor,
        n_rows: torch.Tensor,
        mass: torch.Tensor,
        shift: torch.Tensor,
        live: torch.Tensor,
    ) -> None:
        """Inertia and shift of a step, and whether they end the run."""
        state.inertia += inertia * live
        # Of a mass of 0 the inertia is 0 as well, and nothing is told below.
        mean = inertia / torch.where(mass > 0, mass, 1)
        state.batch_inertia.copy_(torch.where(live, mean, state.batch_inertia))
        state.shift.copy_(torch.where(live, shift, state.shift))
        state.n_steps += live
        # A batch whose rows were all dropped moves nothing, and says nothing.
        told = live & (n_rows > 0)
        stop_at_tol = told & (state.tolerance > 0) & (shift <= state.tolerance)
        state.stop.masked_fill_(stop_at_tol, BY_TOL)
        if self.max_no_improvement is None:
            return
        # As scikit-learn: the first batch is not counted, its inertia is the seeding's.
        counted = told & (state.n_steps > 1)
        alpha = (2.0 * n_rows.double() / (self.n_rows + 1)).clamp_max(1.0)
        smoothed = torch.where(
            state.smoothed_inertia.isnan(),
            mean,
            state.smoothed_inertia * (1 - alpha) + mean * alpha,
        )
        state.smoothed_inertia.copy_(torch.where(counted, smoothed, state.smoothed_inertia))
        improved = counted & (smoothed < state.best_inertia)
        state.best_inertia.copy_(torch.where(improved, smoothed, state.best_inertia))
        waited = torch.where(improved, 0, state.no_improvement + counted.long())
        state.no_improvement.copy_(waited)
        too_long = live & (state.no_improvement >= self.max_no_improvement)
        state.stop.masked_fill_(too_long & (state.stop == RUNNING), BY_NO_IMPROVEMENT)


def nearest(
    kernel: Kernel, batch: Batch, centroids_KD: torch.Tensor, *, spherical: bool
) -> Assignment:
    """The nearest centroid of each row; the first for rows without a direction, if `spherical`.

    A row of zeros is at distance 1 from every unit vector: the tie goes to the first
    centroid, whatever the last bits of their lengths. Distances are good enough to be reported.
    """
    if batch.measured_by is not None:
        return batch.measure_(batch.measured_by, centroids_KD, exact=True)
    labels_B, sq_distances_B = kernel.assign(batch.x_BD, batch.sq_norms_B, centroids_KD)
    if spherical:
        labels_B.masked_fill_(batch.sq_norms_B == 0, 0)
    return Assignment(labels_B, _exact(kernel, batch, labels_B, sq_distances_B, centroids_KD))


def nearest_two(
    kernel: Kernel, batch: Batch, centroids_KD: torch.Tensor, *, spherical: bool
) -> TwoNearest:
    """`nearest`, with the distance to the second nearest centroid."""
    labels_B, sq_distances_B, second_B = kernel.assign_two(
        batch.x_BD, batch.sq_norms_B, centroids_KD
    )
    if spherical:
        labels_B.masked_fill_(batch.sq_norms_B == 0, 0)
    sq_distances_B = _exact(kernel, batch, labels_B, sq_distances_B, centroids_KD)
    return TwoNearest(labels_B, sq_distances_B, second_B)


def _exact(
    kernel: Kernel,
    batch: Batch,
    labels_B: torch.Tensor,
    sq_distances_B: torch.Tensor,
    centroids_KD: torch.Tensor,
) -> torch.Tensor:
    """Distances to add up and report, float64: those that `kernel` gave with the labels, or better.

    Without another read of the rows where the kernel summed up squared differences.
    """
    if kernel.distances_cancel:
        return sq_distances_to(batch.x_BD, labels_B, centroids_KD)
    return sq_distances_B.double()


class BatchSums(NamedTuple):
    """What a batch adds to each cluster."""

    sums: Sums
    """Sums of the rows, times their weights."""
    counts_K: torch.Tensor
    """Number of the rows (of positive weight), int64."""
    weights_K: torch.Tensor
    """Sum of their weights, float64; of shape (0,) where rows have none."""


def nearest_and_sums(
    kernel: Kernel, batch: Batch, centroids_KD: torch.Tensor, *, spherical: bool, exact: bool
) -> tuple[Assignment, BatchSums]:
    """`nearest`, and sums and counts of each cluster over the batch.

    Distances are good enough to be reported if `exact`. Rows that count for nothing go to one
    cluster more, which is then left out.
    """
    (k, n_features), weights_B = centroids_KD.shape, batch.weights_B
    sums_KD = centroids_KD.new_zeros((k + 1, n_features))
    counts_K = torch.zeros(k + 1, dtype=torch.int64, device=sums_KD.device)
    shares_B, unit = _shares(batch, sums_KD.dtype)
    if batch.measured_by is not None:
        assignment = batch.measure_(batch.measured_by, centroids_KD, exact=exact)
        labels_B = assignment.labels_B
        if batch.dropped_B is not None:
            labels_B = labels_B.masked_fill(batch.dropped_B, k)
        batch.measured_by.accumulate(
            batch.x_ND,
            labels_B,
            sums_KD=sums_KD,
            counts_K=counts_K,
            positions_B=batch.positions_B,
        )
    else:
        rows = Rows(batch.x_BD, batch.sq_norms_B, shares_B, batch.left_out_B, zeros_first=spherical)
        labels_B, sq_distances_B = kernel.step(
            rows, centroids_KD, sums_KD=sums_KD, counts_K=counts_K
        )
        if exact:
            sq_distances_B = _exact(kernel, batch, labels_B, sq_distances_B, centroids_KD)
        assignment = Assignment(labels_B, sq_distances_B)
    if weights_B is None:
        no_weights = sums_KD.new_zeros(0, dtype=torch.float64)
        return assignment, BatchSums(Sums(sums_KD[:k], unit), counts_K[:k], no_weights)
    counts_K[k] = len(weights_B) - counts_K[:k].sum()
    labels_B = assignment.labels_B.masked_fill(weights_B == 0, k)
    weights_K1 = weights_B.new_zeros((k + 1, 1))
    add_by_label(weights_B[:, None], labels_B, counts_K, weights_K1)
    sums = Sums(sums_KD[:k], unit)
    return assignment, BatchSums(sums, counts_K[:k], weights_K1[:k, 0])


def sums_by_label(
    kernel: Kernel, batch: Batch, labels_B: torch.Tensor, centroids_KD: torch.Tensor
) -> torch.Tensor:
    """Sum of the rows of each cluster, times their weights, float64: of labels that are known."""
    k, n_features = centroids_KD.shape
    sums_KD = centroids_KD.new_zeros((k + 1, n_features))
    counts_K = torch.zeros(k + 1, dtype=torch.int64, device=sums_KD.device)
    if batch.left_out_B is not None:
        labels_B = labels_B.masked_fill(batch.left_out_B, k)
    shares_B, unit = _shares(batch, sums_KD.dtype)
    x_BD = batch.x_BD if shares_B is None else batch.x_BD * shares_B[:, None]
    kernel.accumulate(x_BD, labels_B, sums_KD=sums_KD, counts_K=counts_K)
    return Sums(sums_KD[:k], unit).wide()


def _shares(batch: Batch, dtype: torch.dtype) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Weights in `dtype`, whatever their size, and their unit, float64.

    The unit is a power of two near the largest, which rounds nothing.
    """
    weights_B = batch.weights_B
    if weights_B is None:
        return None, torch.ones((), dtype=torch.float64, device=batch.x_ND.device)
    _, exponent = torch.frexp(weights_B.max())
    unit = torch.exp2(exponent.double())
    return (weights_B / unit).to(dtype), unit


def weighted_sum(batch: Batch, sq_distances_B: torch.Tensor) -> torch.Tensor:
    """Sum of the squared distances of the rows of a batch, times their weights, float64."""
    if batch.weights_B is not None:
        sq_distances_B = sq_distances_B.double() * batch.weights_B
    return sq_distances_B.sum(dtype=torch.float64)
