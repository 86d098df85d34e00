"""Mini-batch k-means: the centroids move after every batch.

A centroid is the mean of the rows that its cluster remembers, kept as a float64 sum and a float64
mass. How many it remembers is the rate, of which there are two:

``mean`` remembers every row, so that a row moves its centroid by 1 / count (Bottou & Bengio 1995,
Sculley 2010). That is scikit-learn's update. It also remembers the rows that came while the
centroids were still wrong, and more epochs hardly mend that.

``annealed`` remembers at most m rows, so that a row moves its centroid by 1 / m at least; m begins
at `FIRST_MEMORY` and rises in geometric progression to `LAST_MEMORY` times the square root of
the rows that an average cluster gets in the run, or in its first `ANNEALED_EPOCHS`. Short memories
shake the centroids out of poor arrangements, long ones let them settle, as in simulated annealing.
The centroids of the seeding count as `FIRST_MEMORY` rows. Rejected, since they end higher on
embeddings, patches or overlapping Gaussians: one length of memory for the whole run; a rise with
the rows that a cluster got, from which the run need not know its length; a new rise in every epoch;
and the rate sqrt(rows of the cluster in the batch / rows of the batch) of Schwartzman (2023), whose
memory follows the length of a batch. bench/LOG.md has the figures.

With several epochs the run ends when another would not pay, by the rule of Linde, Buzo & Gray
(1980): when an epoch lowered the inertia by no more than a share of it, `min_gain`. The inertia is
the mean per unit of mass, each batch scored before it moves. While memories grow longer it falls by
itself, or rises, so ``annealed`` compares epochs only after `ANNEALED_EPOCHS`.

With row weights, sums are weighted and divided by the sum of the weights, as in scikit-learn, and
m rows are m rows of the cluster's mean weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import torch

from streamkm.clustering.assignment import nearest_and_fixed_sums
from streamkm.clustering.few_launches import (
    step_state,
    takes_few_launches,
    update_in_few_launches_,
)
from streamkm.clustering.reservoir import draw_, gather_reservoir_, reseed_, step_generator
from streamkm.clustering.state import BY_MIN_GAIN, BY_NO_IMPROVEMENT, BY_TOL, RUNNING
from streamkm.clustering.step_sums import Sharing
from streamkm.devices import is_host
from streamkm.distributed.world import ALONE
from streamkm.kernels import StepRules, can_finish, finish_step_

if TYPE_CHECKING:
    from streamkm.clustering.batch import Batch
    from streamkm.clustering.state import KMeansState
    from streamkm.clustering.step_sums import StepSums
    from streamkm.config import ResolvedFitConfig
    from streamkm.distributed.world import World
    from streamkm.kernels import Assignment, MadeKernel

__all__ = ["MiniBatch"]

#: The greatest int64, in which steps are counted.
MOST_STEPS = 2**63 - 1

#: Rows that a cluster remembers at first. With 4, noise drives centroids out of good seeds: 200
#: clusters of one Gaussian end up to 1 % higher after an epoch than with 8. With 16, 1000 clusters
#: of embeddings end 0.3 % higher after four epochs.
FIRST_MEMORY = 8.0
#: What the square root of the rows of a cluster is multiplied by for the memory at the end.
LAST_MEMORY = 4.0
#: Epochs after which every row is remembered, so that centroids come to rest.
ANNEALED_EPOCHS = 10


@dataclass(frozen=True)
class MiniBatch:
    """Moves the centroids after every batch, in place."""

    kernel: MadeKernel
    n_rows: int
    """Number of rows of the whole array."""
    seed: int
    spherical: bool = False
    max_no_improvement: int | None = None
    min_gain: float = 0.0
    rate: str = "mean"
    epochs: int = 1
    batch_rows: int = 1
    """Rows of a batch, at most; with `epochs`, this tells how far the run has come."""
    sharing: Sharing = field(default_factory=Sharing, compare=False)
    """The processes, and how they add up batches."""

    @property
    def world(self) -> World:
        """The processes."""
        return self.sharing.world

    @classmethod
    def make(
        cls, kernel: MadeKernel, config: ResolvedFitConfig, n_rows: int,
        world: World = ALONE, weight_unit: float = 1.0,
    ) -> Self:  # fmt: skip
        """See `Algorithm`; batches bring the unit of their weights themselves."""
        del weight_unit
        spherical = config.metric == "cosine"
        return cls(
            kernel, n_rows, config.seed, spherical, config.max_no_improvement,
            config.min_gain or 0.0, config.rate or "mean",
            config.epochs, config.batch_rows, Sharing(world),
        )  # fmt: skip

    def begin_epoch_(self, state: KMeansState) -> None:
        """See `Algorithm`."""
        state.begin_epoch_()

    def update_(self, state: KMeansState, batch: Batch, *, epoch: int, index: int) -> None:
        """Assign the rows of `batch`, number `index` of `epoch`, and move their centroids.

        A state that has stopped stays as it is, to the bit: the host learns late
        that a run is over, and the batches it has queued by then must not matter.
        """
        anneals, kernel = self.rate == "annealed", self._kernel_for(state)
        # The first step of an annealed run remembers the seeds, in the mean weight of its rows.
        if (
            not (anneals and epoch == index == 0)
            and self.world.size == 1
            and takes_few_launches(kernel, batch, spherical=self.spherical)
        ):
            if anneals and index == 0 and epoch <= ANNEALED_EPOCHS:
                state.former_inertia.masked_fill_(state.stop == RUNNING, torch.nan)
            update_in_few_launches_(
                kernel, state, batch, entropy=(self.seed, epoch, index),
                memory=self.memory(state.k, epoch, index) if anneals else None,
                n_all=self.n_rows, patience=self._patience,
            )  # fmt: skip
            return
        live = state.stop == RUNNING
        if is_host(live.device) and not live:
            return  # On a GPU, reading `live` would make the host wait.

        def offer(assignment: Assignment) -> None:
            labels_B, sq_distances_B = assignment
            generator = step_generator(labels_B.device, self.seed, epoch, index)
            draw_(state, batch, labels_B, sq_distances_B * live, generator)

        added = nearest_and_fixed_sums(
            kernel,
            batch,
            state.centroids_KD,
            spherical=self.spherical,
            sharing=self.sharing,
            usual=state.batch_inertia,
            meanwhile=offer,
        )
        is_first = epoch == index == 0
        memory = self.memory(state.k, epoch, index) if anneals else None
        if anneals and index == 0 and epoch <= ANNEALED_EPOCHS:
            state.former_inertia.masked_fill_(live, torch.nan)
        # (Elsewhere the state may have stopped: see above.)
        if is_host(live.device) and batch.weights_B is None and not (anneals and is_first):
            changed = step_state(state)
            if can_finish(changed):
                rules = StepRules(memory, self.n_rows, self._patience, BY_TOL, BY_NO_IMPROVEMENT)
                finish_step_(changed, added.added(), rules, spherical=self.spherical)
                return
        self._add_(state, added, memory, live, remembers_seeds=anneals and is_first)

    def _add_(
        self,
        state: KMeansState,
        added: StepSums,
        memory: float | None,
        live: torch.Tensor,
        *,
        remembers_seeds: bool,
    ) -> None:
        """Add the sums of a batch to a state that is `live`, and move its centroids."""
        counts_K, weights_K = added.counts_K() * live, added.weights_K() * live
        state.n_dropped += added.n_dropped() * live
        state.counts_K += counts_K
        state.epoch_counts_K += counts_K
        state.weights_K += weights_K
        state.epoch_weights_K += weights_K
        added_K = weights_K if state.is_weighted else counts_K.double()
        n_rows, mass = counts_K.sum(), added_K.sum()
        kept_K = None
        if memory is not None:
            if remembers_seeds:
                _remember_seeds_(state, torch.where(n_rows > 0, mass / n_rows, 1))
            kept_K = _kept(state, added_K, memory)
            state.mass_K *= kept_K
        state.mass_K += added_K
        shift = state.move_(
            counts_K > 0, spherical=self.spherical, added=added.sums(), kept_K=kept_K
        )
        self._watch(state, added.inertia(), n_rows, mass, shift, live)

    @property
    def _patience(self) -> int | None:
        """`max_no_improvement`, no greater than int64 holds: torch refuses to compare with more."""
        wanted = self.max_no_improvement
        return None if wanted is None else min(wanted, MOST_STEPS)

    def _kernel_for(self, state: KMeansState) -> MadeKernel:
        """The kernel for a step from `state`."""
        del state
        return self.kernel

    def gathered(self, state: KMeansState) -> KMeansState:
        """See `Algorithm`: all is added up at every step, but for the reservoir."""
        if self.world.size == 1:
            return state
        whole = state.clone()
        gather_reservoir_(whole, self.world)
        return whole

    def keep_own_(self, state: KMeansState) -> None:
        """See `Algorithm`."""
        if not self.world.is_first:
            state.reservoir_keys_R.fill_(torch.inf)

    def finish_epoch_(self, state: KMeansState) -> None:
        """Reseed the clusters that got no row in the epoch.

        A cluster of few rows stays: far from the others, it may save more
        inertia than all of them together.
        """
        live = state.stop == RUNNING
        gather_reservoir_(state, self.world)
        reseeding = reseed_(state, (state.epoch_counts_K == 0) & live)
        changed_K = reseeding.filled_K | reseeding.donors_K
        state.move_(changed_K, spherical=self.spherical)
        if self.min_gain:
            self._compare_epochs_(state, live & ~reseeding.filled_K.any())

    def memory(self, k: int, epoch: int, index: int) -> float:
        """Rows that each of `k` clusters remembers at most, after batch `index` of `epoch`."""
        n_annealed = min(self.epochs, ANNEALED_EPOCHS) * self.n_rows
        done = (epoch * self.n_rows + index * self.batch_rows) / n_annealed
        rise = max(LAST_MEMORY * math.sqrt(n_annealed / k) / FIRST_MEMORY, 1.0)
        return float(FIRST_MEMORY * rise**done) if done < 1 else math.inf

    def _compare_epochs_(self, state: KMeansState, may_stop: torch.Tensor) -> None:
        """Stop the state if the epoch gained little, and remember its inertia for the next."""
        mass = state.epoch_mass
        # With a mass of 0 the epoch says nothing; a stopped state stays as it is.
        judged = (state.stop == RUNNING) & (mass > 0)
        mean = state.inertia / torch.where(mass > 0, mass, 1)
        # False where the former inertia is NaN; an inertia of 0 cannot fall.
        is_idle = mean >= (1 - self.min_gain) * state.former_inertia
        state.former_inertia.copy_(torch.where(judged, mean, state.former_inertia))
        state.stop.masked_fill_(judged & may_stop & is_idle, BY_MIN_GAIN)

    def _watch(
        self,
        state: KMeansState,
        inertia: torch.Tensor,
        n_rows: torch.Tensor,
        mass: torch.Tensor,
        shift: torch.Tensor,
        live: torch.Tensor,
    ) -> None:
        """Record inertia and shift of a step, and stop the state if they say so."""
        state.inertia += inertia * live
        # With a mass of 0 the inertia is 0 too, and `judged` is false below.
        mean = inertia / torch.where(mass > 0, mass, 1)
        state.batch_inertia.copy_(torch.where(live, mean, state.batch_inertia))
        state.shift.copy_(torch.where(live, shift, state.shift))
        state.n_steps += live
        # A batch whose rows were all dropped moves nothing: that is no sign of convergence.
        judged = live & (n_rows > 0)
        stop_at_tol = judged & (state.tolerance > 0) & (shift <= state.tolerance)
        state.stop.masked_fill_(stop_at_tol, BY_TOL)
        patience = self._patience
        if patience is None:
            return
        # As in scikit-learn, the first batch does not count: its inertia is that of the seeding.
        counted = judged & (state.n_steps > 1)
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
        too_long = live & (state.no_improvement >= patience)
        state.stop.masked_fill_(too_long & (state.stop == RUNNING), BY_NO_IMPROVEMENT)


def _remember_seeds_(state: KMeansState, weight: torch.Tensor) -> None:
    """Let the first centroids count as `FIRST_MEMORY` rows of a weight."""
    state.mass_K.copy_((FIRST_MEMORY * weight).expand_as(state.mass_K))
    state.sums_KD.copy_(state.centroids_KD.double() * state.mass_K[:, None])


def _kept(state: KMeansState, added_K: torch.Tensor, memory: float) -> torch.Tensor:
    """Share of its mass that each cluster keeps: `memory` rows remain at most, new ones included.

    All new rows are remembered, even if there are more of them.
    """
    most_K = torch.full_like(added_K, memory)
    if state.is_weighted:
        most_K *= state.weights_K / state.counts_K
    most_K = torch.minimum(state.mass_K + added_K, torch.maximum(most_K, added_K))
    return torch.where(added_K > 0, (most_K - added_K) / state.mass_K, 1)
