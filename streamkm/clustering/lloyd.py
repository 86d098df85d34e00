"""Lloyd's algorithm over a stream: one exact update after each full pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from streamkm.clustering.minibatch import batch_sums, move_centroids_
from streamkm.clustering.reseeding import draw_, reseed_, step_generator
from streamkm.clustering.state import BY_TOL

if TYPE_CHECKING:
    from streamkm.clustering.scaling import Batch
    from streamkm.clustering.state import KMeansState
    from streamkm.kernels import Kernel

__all__ = ["Lloyd"]


@dataclass(frozen=True)
class Lloyd:
    """Gathers sums and counts over a pass, then moves every centroid at once, in place."""

    kernel: Kernel
    seed: int
    spherical: bool = False

    def update_(self, state: KMeansState, batch: Batch, *, epoch: int, index: int) -> None:
        """Assign the rows of `batch`, the `index`-th of pass `epoch`, and add them up."""
        if index == 0:
            state.sums_KD.zero_()
            state.counts_K.zero_()
        labels_B, sq_distances_B = self.kernel.assign(
            batch.x_BD, batch.sq_norms_B, state.centroids_KD
        )
        if batch.dropped_B is not None:
            sq_distances_B.masked_fill_(batch.dropped_B, 0)
            state.n_dropped += batch.dropped_B.sum()
        sums_KD, counts_K = batch_sums(self.kernel, batch, labels_B, state.k)
        state.sums_KD += sums_KD
        state.counts_K += counts_K
        state.epoch_counts_K += counts_K
        generator = step_generator(labels_B.device, self.seed, epoch, index)
        draw_(state, batch, sq_distances_B, generator)
        inertia = sq_distances_B.double().sum()
        state.inertia += inertia
        state.batch_inertia.copy_(inertia / counts_K.sum().clamp_min(1))
        state.n_steps += 1

    def finish_epoch_(self, state: KMeansState) -> None:
        """Move the centroids to the means of the pass; reseed those that got no row."""
        before_KD = state.centroids_KD.clone()
        empty_K = state.counts_K == 0
        move_centroids_(state, empty_K.logical_not(), spherical=self.spherical)
        reseed_(state, empty_K)
        state.shift.copy_((state.centroids_KD - before_KD).double().square_().sum())
        # A tolerance of 0 asks for centroids that no longer move at all.
        state.stop.masked_fill_(state.shift <= state.tolerance, BY_TOL)
