"""Lloyd's algorithm over a stream: one exact update after each full pass.

A pass assigns every row to the nearest centroid, then moves each centroid to the
mean of its rows. So the figures of a finished run describe a partition: the
clusters of the last pass, their exact sizes, and the sum of squared distances of
their rows to the centroids after the move (`KMeansState.settled_inertia`). After
the move another centroid may be nearer to some rows. The inertia over nearest
centroids is therefore at most the settled one, and equal if the last pass moved
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Self

import torch

from streamkm.clustering.assignment import nearest_and_added_, nearest_and_sums, weighted_sum
from streamkm.clustering.few_launches import add_in_few_launches_, takes_few_launches
from streamkm.clustering.graded_sums import sum_graded_
from streamkm.clustering.reservoir import (
    OFFERED_PER_BATCH,
    draw_,
    gather_reservoir_,
    reseed_,
    step_generator,
)
from streamkm.clustering.state import BY_TOL, CONVERGED
from streamkm.distributed.world import ALONE
from streamkm.kernels import LEAST_GRADE, PassSums, add_graded_, graded_total

if TYPE_CHECKING:
    from streamkm.clustering.assignment import BatchSums
    from streamkm.clustering.batch import Batch
    from streamkm.clustering.carried import CarriedRows
    from streamkm.clustering.reservoir import Reseeding
    from streamkm.clustering.state import KMeansState
    from streamkm.config import ResolvedFitConfig
    from streamkm.distributed.world import World
    from streamkm.kernels import Assignment, MadeKernel

__all__ = ["Lloyd", "is_closed"]


class _Added(NamedTuple):
    """What is known of a batch that has been added to the sums and counts of a pass."""

    assignment: Assignment
    mass: torch.Tensor | int
    """Of its rows; 1 if that is 0."""
    weights_K: torch.Tensor
    """Of its rows, by label; of no meaning without weights."""


@dataclass(frozen=True)
class Lloyd:
    """Gathers sums and counts over a pass, then moves every centroid at once, in place."""

    kernel: MadeKernel
    seed: int
    spherical: bool = False
    closing: bool = False
    """Whether this is a closing pass: it counts no steps, never stops the state, and offers every
    row to the reservoir, from which empty clusters are filled."""
    world: World = ALONE
    weight_unit: float = 1.0
    """A power of two in which sums of weights are kept, so that they fit whatever the weights."""
    carried: CarriedRows | None = None
    """What passes leave for the next ones of rows that lie in windows; None to keep nothing."""

    @classmethod
    def make(
        cls, kernel: MadeKernel, config: ResolvedFitConfig, n_rows: int,
        world: World = ALONE, weight_unit: float = 1.0,
    ) -> Self:  # fmt: skip
        """See `Algorithm`; the number of rows does not matter here."""
        del n_rows
        spherical = config.metric == "cosine"
        return cls(kernel, config.seed, spherical, world=world, weight_unit=weight_unit)

    def begin_epoch_(self, state: KMeansState) -> None:
        """Forget the sums and counts of the pass before."""
        state.begin_epoch_(closing=self.closing)
        self._forget_(state)
        if self.carried is not None:
            self.carried.begin_pass_(state.centroids_KD)

    def _forget_(self, state: KMeansState) -> None:
        for sums in (state.pass_sums_LKD, state.pass_totals_LT):
            sums.zero_()
        for grades in (state.pass_grades_K, state.pass_total_grades_T):
            grades.fill_(LEAST_GRADE)
        state.sums_KD.zero_()
        state.mass_K.zero_()
        state.counts_K.zero_()
        state.weights_K.zero_()

    def update_(self, state: KMeansState, batch: Batch, *, epoch: int, index: int) -> None:
        """Assign the rows of `batch`, number `index` of pass `epoch`, and add them to the sums.

        A batch that belongs to another process is empty.
        """
        kernel = self._kernel_for(state)
        if (
            self.weight_unit == 1.0
            and not state.is_weighted
            and takes_few_launches(kernel, batch, spherical=self.spherical)
        ):
            add_in_few_launches_(
                kernel, state, batch, entropy=(self.seed, epoch, index),
                n_offered=self._n_offered(batch), counts_step=not self.closing,
            )  # fmt: skip
            return
        if not self.closing:
            state.n_steps += 1
        if len(batch) == 0:
            return
        if batch.lies_in_window:
            added = self._add_in_place_(state, batch, index)
        else:
            found = nearest_and_sums(
                kernel, batch, state.centroids_KD, spherical=self.spherical, exact=True
            )
            added = self._add_(state, batch, *found)
        self._offer_(state, batch, added, epoch=epoch, index=index)

    def _add_in_place_(self, state: KMeansState, batch: Batch, index: int) -> _Added:
        """Assign the rows, which lie in a window and have no weights, and `_add_` them."""
        carried = None if self.carried is None else self.carried.of_batch(index, len(batch))
        added = PassSums(
            state.pass_sums_LKD, state.pass_grades_K, (state.counts_K, state.epoch_counts_K)
        )
        assignment = nearest_and_added_(
            self._kernel_for(state), batch, state.centroids_KD, added, 1 / self.weight_unit, carried
        )
        if self.carried is not None and carried is not None:
            self.carried.take(index, carried, state.k)
        n_counted = len(batch)
        if batch.dropped_B is not None:
            n_dropped = int(batch.dropped_B.sum())
            assignment.sq_distances_B.masked_fill_(batch.dropped_B, 0)
            state.n_dropped += n_dropped
            n_counted -= n_dropped
        return _Added(assignment, max(n_counted, 1), state.weights_K)

    def _add_(
        self, state: KMeansState, batch: Batch, assignment: Assignment, of_batch: BatchSums
    ) -> _Added:
        """Add a batch whose rows are assigned to the sums and counts."""
        sums, counts_K, weights_K = of_batch
        if batch.dropped_B is not None:
            assignment.sq_distances_B.masked_fill_(batch.dropped_B, 0)
            state.n_dropped += batch.dropped_B.sum()
        unit = sums.unit / self.weight_unit
        add_graded_(state.pass_sums_LKD, state.pass_grades_K, sums.sums_KD, unit)
        state.counts_K += counts_K
        state.epoch_counts_K += counts_K
        state.weights_K += weights_K
        state.epoch_weights_K += weights_K
        mass = (weights_K if state.is_weighted else counts_K).sum()
        return _Added(assignment, torch.where(mass > 0, mass, 1), weights_K)

    def _offer_(
        self,
        state: KMeansState,
        batch: Batch,
        added: _Added,
        *,
        epoch: int,
        index: int,
    ) -> None:
        """Offer the rows of a batch to the reservoir, and add up their squared distances."""
        (labels_B, sq_distances_B), mass, weights_K = added
        generator = step_generator(labels_B.device, self.seed, epoch, index)
        n_offered = self._n_offered(batch)
        draw_(state, batch, labels_B, sq_distances_B, generator, n_offered=n_offered)
        inertia = weighted_sum(batch, sq_distances_B)
        totals_T = inertia.view(1)
        if state.is_weighted:
            totals_T = torch.cat((totals_T, weights_K))
        totals_T = totals_T / self.weight_unit
        add_graded_(state.pass_totals_LT[..., None], state.pass_total_grades_T, totals_T[:, None])
        state.inertia += inertia
        torch.div(inertia, mass, out=state.batch_inertia)

    def _n_offered(self, batch: Batch) -> int:
        """Rows of the batch that are offered to the reservoir, at most."""
        return len(batch) if self.closing else OFFERED_PER_BATCH

    def _kernel_for(self, state: KMeansState) -> MadeKernel:
        """The kernel for a step from `state`."""
        del state
        return self.kernel

    def gathered(self, state: KMeansState) -> KMeansState:
        """See `Algorithm`: sums are added up, of counts and of whole numbers."""
        if self.world.size == 1:
            return state
        whole = state.clone()
        self._total_(whole)
        return whole

    def keep_own_(self, state: KMeansState) -> None:
        """See `Algorithm`."""
        if not self.world.is_first:
            self._forget_(state)
            state.reservoir_keys_R.fill_(torch.inf)
            for name in ("epoch_counts_K", "epoch_weights_K", "inertia", "n_dropped"):
                getattr(state, name).zero_()

    def gather_(self, state: KMeansState) -> None:
        """Take the sums of the pass together, of all batches and processes, in no order."""
        self._total_(state)
        total_KD = graded_total(state.pass_sums_LKD, state.pass_grades_K)
        torch.mul(total_KD, self.weight_unit, out=state.sums_KD)
        state.mass_K.copy_(state.whole_mass_K)

    def _total_(self, state: KMeansState) -> None:
        """Replace what this process has of the pass by what all have; the sums stay graded."""
        sums = (state.pass_sums_LKD, state.pass_grades_K)
        totals = (state.pass_totals_LT[..., None], state.pass_total_grades_T)
        counts = (state.counts_K, state.epoch_counts_K, state.n_dropped)
        sum_graded_(self.world, (sums, totals), *counts)
        gather_reservoir_(state, self.world)
        totals_T = graded_total(*totals)[:, 0] * self.weight_unit
        state.inertia.copy_(totals_T[0])
        if state.is_weighted:
            state.weights_K.copy_(totals_T[1:])
            state.epoch_weights_K.copy_(totals_T[1:])

    def finish_epoch_(self, state: KMeansState) -> None:
        """Reseed the clusters without a row, then move all centroids to their means."""
        self.gather_(state)
        before_KD = state.centroids_KD.clone()
        reseeding = reseed_(state, state.counts_K == 0)
        touched_K = state.counts_K > 0
        state.shift.copy_(state.move_(touched_K, spherical=self.spherical))
        state.settled_inertia.copy_(_settled_inertia(state, before_KD, reseeding))
        if self.closing:
            return
        # A shift of 0 is convergence whatever the tolerance: the next pass would assign every
        # row as this one did.
        state.stop.masked_fill_(state.shift <= state.tolerance, BY_TOL)
        state.stop.masked_fill_(state.shift == 0, CONVERGED)


def is_closed(state: KMeansState) -> bool:
    """Whether the closing pass that has ended is the last.

    It is if it filled no empty cluster: either none was empty, or every row lies on a centroid,
    because the data has fewer distinct rows than there are clusters. If it filled some, it is
    the last unless a cluster is still empty or two clusters share a centroid.
    """
    n_empty, n_before = int((state.counts_K == 0).sum()), int((state.epoch_counts_K == 0).sum())
    if n_empty == n_before:
        return True
    return n_empty == 0 and len(torch.unique(state.centroids_KD, dim=0)) == state.k


def _settled_inertia(
    state: KMeansState, before_KD: torch.Tensor, reseeding: Reseeding
) -> torch.Tensor:
    """Sum of squared distances of the pass's rows to the centroids after the move.

    It follows from the sum before the move, without another read of the rows. For a cluster of
    mass n and sum S, moving its centroid from c to c - d adds ``2 d.(S - n c) + n |d|^2``,
    whether or not c - d is the mean. A reseeded cluster is one row at distance 0.
    """
    masses_K = state.whole_mass_K.double()
    before_KD = before_KD.double()
    delta_KD = before_KD - state.centroids_KD
    change_K = masses_K * delta_KD.square().sum(dim=1)
    residual_KD = before_KD.mul_(-masses_K[:, None]).add_(state.sums_KD)
    change_K += residual_KD.mul_(delta_KD).sum(dim=1).mul_(2)
    change_K.masked_fill_(reseeding.filled_K, 0)
    return (state.inertia - reseeding.sq_distances + change_K.sum()).clamp_min_(0)
