"""Mini-batches that go on from an earlier run: its rows count, new ones are added.

A centroid is the mean of the rows of the earlier run and of those that came since, kept as a sum
and a mass as in `streamkm.clustering.minibatch`. Every row counts 1, or its weight, as in
scikit-learn's ``partial_fit``: the first centroids are good already, so that there is nothing to
anneal. With a half-life H, the mass of all that came before is multiplied by 2^(-n / H) before a
batch of n rows is added: a row counts half after H more rows, wherever they went. What came before
is no longer at hand, so a cluster that gets no new row keeps its centroid: it is not reseeded, and
no closing pass follows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import torch

from streamkm.clustering.assignment import nearest_and_fixed_sums
from streamkm.clustering.minibatch import MiniBatch
from streamkm.clustering.state import RUNNING, initial_state
from streamkm.devices import is_host
from streamkm.distributed.world import ALONE

if TYPE_CHECKING:
    from streamkm.clustering.batch import Batch
    from streamkm.clustering.state import KMeansState
    from streamkm.config import ResolvedFitConfig
    from streamkm.distributed.world import World
    from streamkm.kernels import MadeKernel

__all__ = ["Growing", "grown_state"]


@dataclass(frozen=True)
class Growing(MiniBatch):
    """`MiniBatch` from where an earlier run has ended."""

    half_life: int | None = None
    """Rows after which what came before counts half; None if it never does."""

    @classmethod
    def make(
        cls, kernel: MadeKernel, config: ResolvedFitConfig, n_rows: int,
        world: World = ALONE, weight_unit: float = 1.0,
    ) -> Self:  # fmt: skip
        """See `Algorithm`."""
        made = super().make(kernel, config, n_rows, world, weight_unit)
        return replace(made, half_life=config.half_life)

    def update_(self, state: KMeansState, batch: Batch, *, epoch: int, index: int) -> None:
        """Age what came before, assign the rows of `batch`, and move their centroids."""
        del epoch, index
        live = state.stop == RUNNING
        if is_host(live.device) and not live:
            return  # On a GPU, reading `live` would make the host wait.
        added = nearest_and_fixed_sums(
            self.kernel,
            batch,
            state.centroids_KD,
            spherical=self.spherical,
            sharing=self.sharing,
            usual=state.batch_inertia,
        )
        state.n_dropped += added.n_dropped() * live
        counts_K, weights_K = added.counts_K() * live, added.weights_K() * live
        added_K = weights_K if len(weights_K) else counts_K.double()
        n_rows, mass = counts_K.sum(), added_K.sum()
        if self.half_life is not None:
            kept = torch.exp2(-n_rows.double() / self.half_life)
            state.mass_K *= kept
            state.sums_KD *= kept
        state.mass_K += added_K
        state.counts_K += counts_K
        state.epoch_counts_K += counts_K
        if state.is_weighted:
            state.weights_K.copy_(state.mass_K)
            state.epoch_weights_K += added_K
        shift = state.move_(counts_K > 0, spherical=self.spherical, added=added.sums())
        self._watch(state, added.inertia(), n_rows, mass, shift, live)

    def finish_epoch_(self, state: KMeansState) -> None:
        """Compare the epoch with the one before, if there is one; no cluster is reseeded."""
        if self.min_gain:
            self._compare_epochs_(state, state.stop == RUNNING)


def grown_state(
    centroids_KD: torch.Tensor,
    sums_KD: torch.Tensor,
    counts_K: torch.Tensor,
    weights_K: torch.Tensor,
    tolerance: float,
    *,
    weighted: bool,
) -> KMeansState:
    """The state of an earlier run before the first new row.

    Parameters
    ----------
    centroids_KD : Tensor of shape (K, D)
        In the scaled space, in the dtype of the new rows.
    sums_KD : float64 Tensor of shape (K, D)
        Sums of the rows so far.
    counts_K : int64 Tensor of shape (K,)
        Their numbers.
    weights_K : float64 Tensor of shape (K,) or (0,)
        Sums of their weights; of shape (0,) if each weighs 1.
    tolerance : float
        Squared centroid shift at which the run stops.
    weighted : bool
        Whether rows weigh differently from now on.
    """
    state = initial_state(centroids_KD, tolerance, weighted=weighted)
    mass_K = (weights_K if len(weights_K) else counts_K).double()
    state.sums_KD.copy_(sums_KD)
    state.counts_K.copy_(counts_K)
    state.mass_K.copy_(mass_K)
    if weighted:
        state.weights_K.copy_(mass_K)
    return state
