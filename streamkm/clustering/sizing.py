"""Passes that bring the sizes of clusters within bounds, at the least cost in inertia.

Each pass reads all rows in order. It gives them to clusters by `PricedKernel`, and what follows
depends on its stage:

- In the first `MOVING_PASSES` centroids move to the means of their clusters and prices follow, so
  that centroids go where rows have to. Before three of them, centroids of few rows go to clusters
  of too many.
- Then only prices change, until no more than `LEFT_SHARE` of the rows are too many for their
  clusters.
- One pass gathers rows that lose little by going to the next cluster, and some of them go
  (see `clustering.settling`). Each process makes it whole.
- A last pass fills the clusters in the order of the rows (see `clustering.sizes`). It keeps the
  bounds to the row, whatever the passes before it have reached. Which cluster a row gets depends
  on all rows before it, so that of several processes each makes the whole of this pass.

A price rises by what makes as many rows leave as are too many, if no other price changes, and falls
again where there is room (Bertsekas' auctions raise prices in the same way, row by row). A pass
counts for each cluster how much its rows would lose by leaving it, in bins of a quarter of an
octave. On the other side of its border there are about as many rows, so that the same numbers say
how far a price may fall. So no pass keeps anything for each row.

Prices bring clusters to their least size by the most that the others may have: where clusters must
have more rows, the others get so many less, each in proportion to what it has above the least.
Prices below those of others, which would draw rows to a cluster, were rejected: in many dimensions
very many rows have a cluster only a little farther off than their own, and all of them come at
once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import torch

from streamkm.bounds import Bounds
from streamkm.clustering.assignment import totals_by_label
from streamkm.clustering.exchanging import allotted, exchanges, to_nearest
from streamkm.clustering.lloyd import Lloyd
from streamkm.clustering.settling import Pool, offer_, settle_
from streamkm.clustering.size_plan import BIN_BITS, MOST_PASSES, N_BINS, OCTAVES_ABOVE, pool_places
from streamkm.clustering.sizes import NEVER, PricedKernel, SizeRule, Taken, take_
from streamkm.distributed.world import ALONE
from streamkm.kernels import Assignment, normalized
from streamkm.kernels import sq_distances_to as distances_to

if TYPE_CHECKING:
    from streamkm.clustering.batch import Batch
    from streamkm.clustering.state import KMeansState
    from streamkm.config import ResolvedFitConfig
    from streamkm.distributed.world import World
    from streamkm.kernels import MadeKernel

__all__ = [
    "DONE",
    "FILLING",
    "GATHERING",
    "SizeState",
    "Sizing",
    "allotted",
    "initial_sizes",
    "lost_by",
]

#: Stages: centroids and prices move, prices alone, rows that could go elsewhere are gathered, rows
#: are given out, all is done.
MOVING, PRICING, GATHERING, FILLING, DONE = range(5)
#: Passes in which centroids move. On embeddings, 8 end 0.1 % higher.
MOVING_PASSES = 12
#: Share of the rows that may be too many for their clusters before the last pass. Each costs up to
#: its squared distance once more.
LEFT_SHARE = 0.001
#: Share of a step of prices that is taken at first: neighbours move theirs at the same time.
DAMPING = 0.7
#: What multiplies that share where a price goes on in the same direction, and where it turns, and
#: the least and the most that becomes of it: where many clusters are full, all their prices rise
#: together, and what makes rows leave one of them is far too little (Riedmiller & Braun 1993).
FASTER, SLOWER, LEAST_GAIN, MOST_GAIN = 1.25, 0.5, 0.3, 6.0
#: The longest step, in mean squared distances: rows far off would all leave at once.
LONGEST_STEP = 0.5
#: Places of a cluster that prices leave free, as a share, where there are places to spare.
SPARE_PLACES = 0.005
#: Passes after which centroids go to other clusters: after all but the first only if more than this
#: share of what was too much at the one before is so still.
EXCHANGING, STUCK_SHARE = (0, 4, 8), 0.5
#: Centroids that go elsewhere, for each cluster's worth of rows that are too many.
EXCHANGED_SHARE = 0.5
#: Clusters whose rows are too many by this share of the most share their centroid in the end.
SHARING_ABOVE = 0.25
#: Bits of a float32 below those that choose a bin.
DROPPED_BITS = 23 - BIN_BITS


@dataclass
class SizeState:
    """How far the sizes of clusters have come: all that the passes need beside the state."""

    prices_K: torch.Tensor
    """See `SizeRule`."""
    closes_K: torch.Tensor
    """See `SizeRule`."""
    gains_K: torch.Tensor
    """Shares of steps of prices that are taken, float64, below 0 where the last one was down."""
    room_K: torch.Tensor
    """Rows that each cluster can still take in the last pass, int64; 0 before."""
    due_K: torch.Tensor
    """Rows that each cluster must still get in the last pass, int64; 0 before."""
    n_left: torch.Tensor
    """Rows that are still to be given out in the last pass, int64; 0 before."""
    counts_K: torch.Tensor
    """Rows of each cluster in this pass, int64; rows of weight 0 count, dropped ones do not."""
    leaving_KE: torch.Tensor
    """Numbers of rows by what they would lose by leaving their cluster, int64."""
    top_bin: torch.Tensor
    """The bits of a float32 that choose the last bin, int64."""
    next_row: torch.Tensor
    """Number of the next row of this pass, int64."""
    n_passes: torch.Tensor
    """Passes that have ended, int64."""
    stage: torch.Tensor
    """int64."""
    former_excess: torch.Tensor
    """Rows that were too many at the last look for centroids to move elsewhere, int64."""
    free_inertia: torch.Tensor
    """Inertia of the first pass, before any bound, float64; NaN before."""
    n_given: torch.Tensor
    """Rows that went elsewhere because their cluster was full, int64."""
    reach_K: torch.Tensor
    """The most that a row which is gathered loses, float64; 0 before."""
    rows_P: torch.Tensor
    """See `Pool`, as the three after it. From the last pass on, those that go elsewhere."""
    from_P: torch.Tensor
    to_P: torch.Tensor
    losses_P: torch.Tensor

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor by its name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def rule(self) -> SizeRule:
        """What decides labels, in the end."""
        is_row_P = self.rows_P != NEVER
        return SizeRule(self.prices_K, self.closes_K, self.rows_P[is_row_P], self.to_P[is_row_P])

    @property
    def taken(self) -> Taken:
        """How full clusters are in the last pass, on the memory of the state."""
        return Taken(
            self.room_K, self.due_K, self.n_left, self.closes_K, self.n_given, self.rows_P,
            self.to_P,
        )  # fmt: skip

    @property
    def pool(self) -> Pool:
        """Rows that could go elsewhere, on the memory of the state."""
        return Pool(self.rows_P, self.from_P, self.to_P, self.losses_P)

    @property
    def is_done(self) -> bool:
        """Whether the last pass has ended."""
        return int(self.stage) == DONE

    def world_of_pass(self, world: World) -> World:
        """The processes that share the next pass: this one alone in the last two."""
        return ALONE if int(self.stage) in (GATHERING, FILLING) else world

    @property
    def of_this_process(self) -> tuple[torch.Tensor, ...]:
        """What each process counts of its rows."""
        return self.counts_K, self.leaving_KE


def initial_sizes(k: int, sq_distance: torch.Tensor, device: torch.device) -> SizeState:
    """The state before the first pass; `sq_distance` is about the mean one of the rows."""

    def integers(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.int64, device=device)

    usual = torch.where(sq_distance > 0, sq_distance, 1).float().view(1)
    top_bin = (usual.view(torch.int32).long() >> DROPPED_BITS) + (OCTAVES_ABOVE << BIN_BITS)
    places = pool_places(k)
    return SizeState(
        prices_K=torch.zeros(k, dtype=torch.float64, device=device),
        closes_K=integers(k) + NEVER,
        gains_K=torch.full((k,), DAMPING, dtype=torch.float64, device=device),
        room_K=integers(k),
        due_K=integers(k),
        n_left=integers(),
        counts_K=integers(k),
        leaving_KE=integers(k, N_BINS),
        top_bin=top_bin.view(()).to(device),
        next_row=integers(),
        n_passes=integers(),
        stage=integers(),
        former_excess=integers(),
        free_inertia=torch.full((), torch.nan, dtype=torch.float64, device=device),
        n_given=integers(),
        reach_K=torch.zeros(k, dtype=torch.float64, device=device),
        rows_P=integers(places) + NEVER,
        from_P=integers(places),
        to_P=integers(places),
        losses_P=torch.full((places,), torch.inf, dtype=torch.float64, device=device),
    )


@dataclass(frozen=True)
class Sizing(Lloyd):
    """One pass after the other, until the sizes are done; see the module."""

    config: ResolvedFitConfig | None = None
    sizes: SizeState | None = None
    source: str = ""
    """What errors call the rows."""

    @classmethod
    def of(
        cls,
        kernel: MadeKernel,
        config: ResolvedFitConfig,
        sizes: SizeState,
        source: str,
        world: World = ALONE,
        weight_unit: float = 1.0,
    ) -> Sizing:
        """The next pass of `sizes`; the others are as in `Algorithm.make`."""
        return cls(
            PricedKernel(kernel, sizes.prices_K), config.seed, config.metric == "cosine",
            closing=True, world=sizes.world_of_pass(world), weight_unit=weight_unit,
            config=config, sizes=sizes, source=source,
        )  # fmt: skip

    def begin_epoch_(self, state: KMeansState) -> None:
        """Begin a pass: forget what the one before counted."""
        super().begin_epoch_(state)
        sizes = self._sizes
        for tensor in (*sizes.of_this_process, sizes.next_row):
            tensor.zero_()

    def update_(self, state: KMeansState, batch: Batch, *, epoch: int, index: int) -> None:
        """Give the rows of `batch` to clusters, and count them."""
        if len(batch) == 0:
            return
        sizes, centroids_KD = self._sizes, state.centroids_KD
        assert isinstance(self.kernel, PricedKernel)
        kernel = self.kernel.on(sizes.prices_K)
        if int(sizes.stage) == FILLING:
            labels_B = take_(sizes.taken, kernel, batch, centroids_KD, int(sizes.next_row))
        elif int(sizes.stage) == GATHERING:
            labels_B = offer_(
                sizes.pool, kernel, batch, centroids_KD, sizes.prices_K, sizes.reach_K,
                int(sizes.next_row),
            )  # fmt: skip
        else:
            labels_B = self._count_(kernel, batch, centroids_KD)
        counted_B = labels_B if batch.dropped_B is None else labels_B[~batch.dropped_B]
        sizes.counts_K += torch.bincount(counted_B, minlength=state.k)
        sizes.next_row += len(batch)
        found = Assignment(labels_B, distances_to(batch.x_BD, labels_B, centroids_KD))
        totals = totals_by_label(kernel, batch, labels_B, centroids_KD)
        added = self._add_(state, batch, found, totals)
        self._offer_(state, batch, added, epoch=epoch, index=index)

    def gathered_sizes(self) -> SizeState:
        """What `gathered` is to the state."""
        if self.world.size == 1:
            return self._sizes
        whole = replace(self._sizes, **{n: t.clone() for n, t in self._sizes.tensors().items()})
        self.world.sum_(*whole.of_this_process)
        return whole

    def keep_own_(self, state: KMeansState) -> None:
        """See `Algorithm`."""
        super().keep_own_(state)
        if not self.world.is_first:
            for tensor in self._sizes.of_this_process:
                tensor.zero_()

    def gather_(self, state: KMeansState) -> None:
        """Add up what all processes have counted, too."""
        super().gather_(state)
        self.world.sum_(*self._sizes.of_this_process)

    def finish_epoch_(self, state: KMeansState) -> None:
        """Move prices and centroids, or end: see the module."""
        self.gather_(state)
        state.settled_inertia.copy_(state.inertia)
        sizes, config = self._sizes, self.config
        assert config is not None
        if int(sizes.stage) == FILLING:
            sizes.stage.fill_(DONE)
            return
        n_rows = int(sizes.counts_K.sum())
        bounds = Bounds.of(config, n_rows)
        bounds.check(config, n_rows, self.source)
        if int(sizes.stage) == GATHERING:
            sizes.n_passes += 1
            sizes.n_given += settle_(sizes.pool, sizes.counts_K, sizes.prices_K, bounds)
            self._fill_(bounds, n_rows)
            return
        n_excess = int((sizes.counts_K - allotted(sizes.counts_K, bounds)).clamp_min_(0).sum())
        n_passes = int(sizes.n_passes)
        if n_passes == 0:
            sizes.free_inertia.copy_(state.inertia)
        sizes.n_passes += 1
        moves = n_passes < MOVING_PASSES
        ends = n_excess == 0 if n_passes == 0 else not moves and n_excess <= LEFT_SHARE * n_rows
        if ends or n_passes + 2 >= MOST_PASSES:  # Older versions made one more.
            self._share_(state, bounds)
            if n_passes == 0:  # Nothing is too much.
                self._fill_(bounds, n_rows)
                return
            wanted_K = torch.full_like(sizes.counts_K, pool_places(state.k) // state.k)
            sizes.reach_K.copy_(lost_by(sizes.leaving_KE, wanted_K, sizes.top_bin))
            sizes.stage.fill_(GATHERING)
            return
        sizes.stage.fill_(MOVING if n_passes + 1 < MOVING_PASSES else PRICING)
        # A few rows more than the least: no price is met to the row.
        wanted = bounds.least + math.ceil(bounds.least * SPARE_PLACES)
        most_K = allotted(sizes.counts_K, Bounds(min(wanted, n_rows // state.k), bounds.most))
        has_spare = int(most_K.sum()) > n_rows
        self._price_(state, most_K, has_spare=has_spare)
        if moves:
            state.shift.copy_(state.move_(state.counts_K > 0, spherical=self.spherical))
        if moves and n_passes in EXCHANGING:
            self._exchange_(state, bounds, n_excess)

    def _fill_(self, bounds: Bounds, n_rows: int) -> None:
        """Begin the last pass."""
        sizes = self._sizes
        sizes.room_K.fill_(bounds.most)
        sizes.due_K.fill_(bounds.least)
        sizes.n_left.fill_(n_rows)
        sizes.stage.fill_(FILLING)

    @property
    def _sizes(self) -> SizeState:
        assert self.sizes is not None
        return self.sizes

    def _count_(
        self, kernel: PricedKernel, batch: Batch, centroids_KD: torch.Tensor
    ) -> torch.Tensor:
        """The labels of a batch; counts its rows by what they would lose by leaving them."""
        sizes, k = self._sizes, len(centroids_KD)
        labels_B, least_B, second_B = kernel.assign_two(batch.x_BD, batch.sq_norms_B, centroids_KD)
        loss_B = (second_B - least_B).clamp_min_(0).float()
        bins_B = (loss_B.view(torch.int32).long() >> DROPPED_BITS) - sizes.top_bin
        places_B = labels_B * N_BINS + (bins_B + N_BINS - 1).clamp_(0, N_BINS - 1)
        if batch.dropped_B is not None:
            places_B = places_B[~batch.dropped_B]
        sizes.leaving_KE += torch.bincount(places_B, minlength=k * N_BINS).view(k, N_BINS)
        return labels_B

    def _price_(self, state: KMeansState, most_K: torch.Tensor, *, has_spare: bool) -> None:
        """Raise the prices of clusters of too many rows, and lower those that have room."""
        sizes = self._sizes
        longest = LONGEST_STEP * float(state.inertia) / max(float(state.epoch_mass), 1)
        if longest == 0:
            return  # Every row is on a centroid, and equal rows can only be given out in order.
        aimed_K = most_K - (most_K * SPARE_PLACES).long() if has_spare else most_K
        above_K = sizes.counts_K - aimed_K
        step_K = lost_by(sizes.leaving_KE, above_K.abs(), sizes.top_bin).clamp_max_(longest)
        down_K = torch.minimum(step_K, sizes.prices_K)
        is_up_K, gains_K = above_K > 0, sizes.gains_K
        if int(sizes.stage) == PRICING:
            same_K = is_up_K == (gains_K > 0)
            gains_K.abs_().mul_(torch.where(same_K, FASTER, SLOWER)).clamp_(LEAST_GAIN, MOST_GAIN)
        up_K = (gains_K * step_K).clamp_max_(longest)
        sizes.prices_K += torch.where(is_up_K, up_K, -down_K * gains_K.clamp_max(1))
        if int(sizes.stage) == PRICING:
            gains_K.mul_(torch.where(is_up_K, 1, -1))
        # What all prices have in common decides nothing.
        sizes.prices_K -= sizes.prices_K.min()

    def _exchange_(self, state: KMeansState, bounds: Bounds, n_excess: int) -> None:
        """Move centroids of few rows into clusters of too many."""
        sizes = self._sizes
        former, counts_K = int(sizes.former_excess), sizes.counts_K.clone()
        sizes.former_excess.fill_(n_excess)
        n_rows, k = int(counts_K.sum()), state.k
        n_small = int((counts_K < bounds.least / 2).sum())
        n_moved = 0
        if n_excess > 5 * LEFT_SHARE * n_rows and (not former or n_excess > STUCK_SHARE * former):
            n_moved = int(-(-n_excess * EXCHANGED_SHARE // bounds.most))
        pairs = exchanges(state, counts_K, bounds, max(n_moved, n_small), n_rows / k)
        is_used_R = ~state.reservoir_keys_R.isfinite()
        for divided, moved in pairs:
            old_D = state.centroids_KD[divided].double()
            rows = (~is_used_R & (state.reservoir_labels_R == divided)).nonzero().squeeze(1)
            new_D = old_D
            if len(rows):  # Else all rows of the cluster are equal, as far as is known.
                is_used_R[rows[0]] = True
                new_D = (old_D + state.reservoir_RD[rows[0]].double()) / 2
                new_D = normalized(new_D[None])[0] if self.spherical else new_D
            state.centroids_KD[moved] = new_D.to(state.centroids_KD.dtype)
            sizes.prices_K[moved] = sizes.prices_K[divided]

    def _share_(self, state: KMeansState, bounds: Bounds) -> None:
        """Give centroids of few rows the places, and prices, of those that far too many rows share.

        Equal rows, however many, and groups far from all others can so be divided in the order of
        the rows, which costs nothing but the few rows.
        """
        sizes = self._sizes
        counts_K, parts_K = sizes.counts_K.clone(), torch.ones_like(sizes.counts_K)
        if int((counts_K - bounds.most).max()) <= SHARING_ABOVE * bounds.most:
            return
        shared = []
        few = (2 * counts_K < bounds.most).nonzero().squeeze(1)
        loss_F = to_nearest(state.centroids_KD, few).double() * counts_K[few]
        for moved in few[loss_F.argsort(stable=True)].tolist():
            above_K = counts_K - bounds.most * parts_K
            divided, n_given_up = int(above_K.argmax()), int(counts_K[moved])
            if int(above_K[divided]) <= SHARING_ABOVE * bounds.most:
                break
            if moved == divided or n_given_up > int(above_K[divided]):
                continue
            parts_K[divided] += 1
            counts_K[moved] = 0
            # Where its rows go is known in the last pass alone: to a cluster that has room.
            counts_K[(counts_K - bounds.most * parts_K).argmin()] += n_given_up
            shared.append((divided, moved))
        for divided, moved in shared:
            state.centroids_KD[moved] = state.centroids_KD[divided]
            sizes.prices_K[moved] = sizes.prices_K[divided]


def lost_by(counts_KE: torch.Tensor, n_rows_K: torch.Tensor, top_bin: torch.Tensor) -> torch.Tensor:
    """What the last of `n_rows_K` rows of least loss would lose, float64.

    It is infinite if there are fewer rows. Within a bin it is by proportion.
    """
    up_to_KE = counts_KE.cumsum(1)
    wanted_K1 = n_rows_K.clamp_min(1)[:, None]
    bin_K1 = torch.searchsorted(up_to_KE, wanted_K1).clamp_max_(N_BINS - 1)
    in_bin_K1 = counts_KE.gather(1, bin_K1)
    before_K1 = up_to_KE.gather(1, bin_K1) - in_bin_K1
    bits_E = torch.arange(N_BINS + 1, device=counts_KE.device) + top_bin - (N_BINS - 1)
    edges_E = (bits_E << DROPPED_BITS).int().view(torch.float32).double()
    edges_E[0] = 0
    part_K1 = (wanted_K1 - before_K1) / in_bin_K1.clamp_min(1)
    lost_K1 = edges_E[bin_K1] + part_K1 * (edges_E[bin_K1 + 1] - edges_E[bin_K1])
    return torch.where(wanted_K1 <= up_to_KE[:, -1:], lost_K1, torch.inf).squeeze(1)
