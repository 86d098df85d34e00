"""A tree of clusters on a sample: centroids for many clusters at a few comparisons a row.

k-means++ and Lloyd's algorithm compare each row with every centroid. Here a few clusters are
divided into more, level by level, each into as many as its cost says, and a row is compared with
those near its own cluster alone (cluster closures: Wang et al. 2012, "Fast approximate k-means via
cluster closures"). A pass is so cheap that many are affordable.

The passes are those of mini-batch k-means with a short memory: sums and masses fade, so that a row
counts half after `HALF_LIFE` more rows of its cluster. Such centroids carry some noise, which leads
them out of poor minima; a pass of Lloyd's algorithm then takes it away. Exchanges
and handovers (see `exchange`) mend what no pass can: a level above may have given a branch too many
clusters, and three groups may share two clusters in a poor way.

Rejected: a tree without passes across the borders of its branches, which ends twice as far above
the best; passes of Lloyd's algorithm instead, which stay in the nearest minimum; breaths after the
tree, which end higher on separated groups (bench/LOG.md).
"""

from __future__ import annotations

from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import torch

from streamkm.clustering.seeding.exchange import (
    Halves,
    Part,
    choose_exchanges,
    choose_handovers,
    cost_of_joining,
    draw_of_each,
)
from streamkm.clustering.seeding.kmeans_plusplus import GreedyPlusPlus
from streamkm.clustering.seeding.sample import Draws, Sample, draw_distinct
from streamkm.clustering.seeding.shares import ALL_HERE
from streamkm.clustering.seeding.tree_plan import HALF_LIFE, POOL, ROWS_PER_CHILD, deal
from streamkm.kernels import add_by_label, normalized, sq_distances_between, sq_distances_to

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streamkm.clustering.seeding.shares import Shares
    from streamkm.clustering.seeding.tree_plan import TreePlan
    from streamkm.kernels import Kernel

__all__ = ["Tree"]

#: Kind of these draws; see `Draws`.
_TREE = -7
#: Clusters of a branch whose distances to others are in memory at once.
TILE_CLUSTERS = 256


class Near(NamedTuple):
    """The clusters in and near each branch, and the heir of each cluster."""

    in_branches: list[torch.Tensor]
    """Clusters of a branch."""
    of_branches: list[torch.Tensor]
    """Clusters that the rows of a branch are compared with, ascending; none if it has none."""
    heir_K: torch.Tensor
    """The nearest other cluster, which gets the rows of one given up; the cluster itself if it is
    the only one."""


class Tree:
    """Grows the tree that `plan` describes; a branch is a cluster of the level above."""

    name, unit = "tree of clusters", "step"

    def __init__(
        self,
        sample: Sample,
        k: int,
        plan: TreePlan,
        seed: int,
        number: int = 0,
        *,
        make_kernel: Callable[[int], Kernel],
        batch_rows: int,
        spherical: bool = False,
        shares: Shares = ALL_HERE,
        pause: Callable[[], None] = lambda: None,
    ) -> None:
        """`make_kernel` makes one for `batch_rows` rows and at most a number of centroids."""
        self._plan, self._steps = plan, plan.steps()
        self.n_units, self.n_done = len(self._steps), 0
        self._sample, self._seed, self._number = sample, seed, number
        self._draws = Draws(seed, _TREE, number)
        # One for each level and its number of near clusters.
        self._kernel_for, self._batch_rows = cache(make_kernel), batch_rows
        self._spherical, self._shares, self._pause = spherical, shares, pause
        x_SD = sample.x_SD
        self.centroids_KD = x_SD.new_zeros((k, x_SD.shape[1]))
        self._sums_KD = torch.zeros_like(self.centroids_KD, dtype=torch.float64)
        self._mass_K = self._sums_KD.new_zeros(k)
        self._branch_K = torch.zeros(k, dtype=torch.int64, device=x_SD.device)
        self._label_S = self._branch_K.new_zeros(len(sample))
        self._closest_S = torch.ones_like(sample.sq_norms_S)
        self._shares_S, self._unit, self._mean_weight = None, 1.0, 1.0
        if sample.weights_S is not None:
            self._mean_weight = float(sample.weights_S.mean())
            # A power of two, which rounds nothing.
            self._unit = float(torch.exp2(torch.frexp(sample.weights_S.max())[1].double()))
            self._shares_S = sample.weights_S / self._unit

    def tensors(self) -> dict[str, torch.Tensor]:
        """Centroids, their sums, masses and branches, and the cluster of each row."""
        return {
            "centroids_KD": self.centroids_KD,
            "sums_KD": self._sums_KD,
            "mass_K": self._mass_K,
            "branch_K": self._branch_K,
            "label_S": self._label_S,
            "closest_S": self._closest_S,
        }

    def restore_(self, tensors: dict[str, torch.Tensor], index: int, /) -> None:
        """See `Stage`."""
        self.n_done, self._closest_S = index, tensors["closest_S"]
        self.centroids_KD = tensors["centroids_KD"]
        self._sums_KD, self._mass_K = tensors["sums_KD"], tensors["mass_K"]
        self._branch_K, self._label_S = tensors["branch_K"], tensors["label_S"]

    def step_(self, index: int) -> bool:
        """Divide the clusters of a level, or make a pass over the rows."""
        level, kind = self._steps[index]
        # The tensors of the step before stay as they are, in case this one is stopped midway.
        self.restore_({name: tensor.clone() for name, tensor in self.tensors().items()}, index)
        generator = self._draws.generator(self._label_S.device, index)
        if kind == "divide":
            self._divide_(level, index, generator)
        else:
            self._pass_(level, kind, generator)
        self.n_done = index + 1
        return self.n_done < self.n_units

    # ---- to divide --------------------------------------------------------------

    def _divide_(self, level: int, index: int, generator: torch.Generator) -> None:
        """Divide each cluster of the level above by k-means++ on some of its rows."""
        sample, k = self._sample, self._plan.levels[level]
        above = self._plan.levels[level - 1] if level else 1
        # In random order, so that the first rows of a branch are a fair choice of them.
        order_S = torch.randperm(len(sample), device=self._label_S.device, generator=generator)
        order_S = order_S[self._label_S[order_S].argsort(stable=True)]
        counts_K = torch.bincount(self._label_S, minlength=above)
        costs_K1 = self._sums_KD.new_zeros((above, 1))
        costs_S = sample.weighted(self._closest_S).double()
        add_by_label(costs_S[:, None], self._label_S, counts_K, costs_K1)
        counts = counts_K.tolist()
        children = deal(costs_K1[:, 0].tolist(), counts, k, sample.x_SD.shape[1])
        made = []
        branches = zip(order_S.split(counts), children, strict=True)
        for branch, (rows_R, n_children) in enumerate(branches):
            if n_children:
                self._pause()
                few = self._part(rows_R[: ROWS_PER_CHILD * n_children])
                number = (self._number << 48) + (index << 32) + branch
                stage, step = GreedyPlusPlus(few, n_children, self._seed, number), 0
                while stage.step_(step):
                    step += 1
                made.append(stage.centroids_KD)
        self.centroids_KD[:k] = torch.cat(made)
        dealt = torch.tensor(children, device=counts_K.device)
        self._branch_K[:k] = torch.repeat_interleave(dealt)
        # Until the first pass, the rows of a branch count as those of its first cluster.
        self._label_S = (dealt.cumsum(dim=0) - dealt)[self._label_S]
        self._sums_KD.zero_()
        self._mass_K.zero_()

    def _part(self, rows_R: torch.Tensor) -> Sample:
        sample = self._sample
        weights_R = None if sample.weights_S is None else sample.weights_S[rows_R]
        return Sample(sample.x_SD.index_select(0, rows_R), weights_R)

    # ---- to pass over the rows --------------------------------------------------

    def _pass_(self, level: int, kind: str, generator: torch.Generator) -> None:
        """Assign all rows and move the centroids: after each batch, or at the end."""
        k, n_batches = self._plan.levels[level], self._plan.batches[level]
        forgets, exchanges, n_rows = kind != "mean", kind == "exchange", len(self._label_S)
        near = self._find_near(level)
        second_S = torch.empty_like(self._closest_S) if exchanges else None
        all_sums_KD = torch.zeros_like(self._sums_KD[:k])
        all_mass_K = torch.zeros_like(self._mass_K[:k])
        order_S = torch.randperm(n_rows, device=self._label_S.device, generator=generator)
        if forgets and level < len(self._plan.levels) - 1:
            order_S = order_S[: ROWS_PER_CHILD * k]
        for rows_R in order_S.chunk(n_batches):
            sums_KD, mass_K = self._assign_(rows_R, near, k, second_S)
            all_sums_KD += sums_KD
            all_mass_K += mass_K
            if forgets:
                kept_K = torch.exp2(-mass_K / (self._mean_weight * HALF_LIFE))
                self._sums_KD[:k] = self._sums_KD[:k] * kept_K[:, None] + sums_KD
                self._mass_K[:k] = self._mass_K[:k] * kept_K + mass_K
                self._move_(k)
        if not forgets:
            self._sums_KD[:k], self._mass_K[:k] = all_sums_KD, all_mass_K
            self._move_(k)
        if second_S is None:
            self._fill_(all_mass_K == 0, generator)
        else:
            # It gives up the empty clusters first, since nothing is lost without them.
            self._exchange_(Part(all_sums_KD, all_mass_K), second_S, near, generator)

    def _find_near(self, level: int) -> Near:
        """The clusters near each branch, by the distances between centroids."""
        k, n_near = self._plan.levels[level], self._plan.near[level]
        n_branches = self._plan.levels[level - 1] if level else 1
        c_KD, branch_K = self.centroids_KD[:k], self._branch_K[:k]
        c_sq_K, every_K = c_KD.square().sum(dim=1), torch.arange(k, device=c_KD.device)
        counts_B = torch.bincount(branch_K, minlength=n_branches)
        members = branch_K.argsort(stable=True).split(counts_B.tolist())
        n_around = -(-POOL * n_near * n_branches // k)
        around_BA = None
        if n_around < n_branches:
            means_BD = c_KD.new_zeros((n_branches, c_KD.shape[1]))
            add_by_label(c_KD, branch_K, counts_B, means_BD)
            means_BD /= counts_B[:, None].clamp_min(1)
            between_BB = sq_distances_between(means_BD, means_BD, means_BD.square().sum(dim=1))
            between_BB.masked_fill_(counts_B == 0, torch.inf).fill_diagonal_(0)
            around_BA = between_BB.topk(n_around, dim=1, largest=False).indices.tolist()
        of_branches, heir_K = [], every_K.clone()
        for branch, own_L in enumerate(members):
            if not len(own_L):
                of_branches.append(own_L)
                continue
            pool_P = every_K
            if around_BA is not None:
                pool_P = torch.cat([members[other] for other in around_BA[branch]])
            c_PD, c_sq_P = c_KD[pool_P], c_sq_K[pool_P]
            nearest_P = torch.full_like(c_sq_P, torch.inf)
            for own_T in own_L.split(TILE_CLUSTERS):
                between_TP = sq_distances_between(c_KD[own_T], c_PD, c_sq_P)
                torch.minimum(nearest_P, between_TP.amin(dim=0), out=nearest_P)
                between_TP.masked_fill_(own_T[:, None] == pool_P, torch.inf)
                heir_K[own_T] = pool_P[between_TP.argmin(dim=1)]
            # A branch of very many clusters needs all of them, and others beyond its borders.
            n_chosen = n_near
            while n_chosen < 2 * len(own_L):
                n_chosen *= 2
            n_chosen = min(n_chosen, len(pool_P))
            chosen_N = nearest_P.topk(n_chosen, largest=False).indices
            of_branches.append(pool_P[chosen_N].sort().values)
        return Near(members, of_branches, heir_K)

    def _assign_(
        self, rows_R: torch.Tensor, near: Near, k: int, second_S: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Label `rows_R` by the nearest of the clusters near theirs; return sums and masses."""
        sample, c_KD = self._sample, self.centroids_KD[:k]
        branch_R = self._branch_K[self._label_S[rows_R]]
        rows_R = rows_R[branch_R.argsort(stable=True)]
        x_RD, sq_norms_R = sample.x_SD.index_select(0, rows_R), sample.sq_norms_S[rows_R]
        counts_B = torch.bincount(branch_R, minlength=len(near.of_branches))
        kernel = self._kernel_for(n_near := max(map(len, near.of_branches)))

        def nearest(share: slice) -> tuple[torch.Tensor, ...]:
            found = []
            for branch, part in self._parts(counts_B, share):
                near_N = near.of_branches[branch]
                rows = (x_RD[part], sq_norms_R[part], c_KD.index_select(0, near_N))
                assign = kernel.assign if second_S is None else kernel.assign_two
                label_P, *distances = assign(*rows)
                found.append((near_N[label_P], *distances))
            return tuple(map(torch.cat, zip(*found, strict=True)))

        distances = (x_RD.dtype,) * (1 if second_S is None else 2)
        label_R, closest_R, *second = self._shares.find(
            x_RD, n_near, (torch.int64, *distances), nearest
        )
        self._label_S[rows_R], self._closest_S[rows_R] = label_R, closest_R
        if second_S is not None:
            second_S[rows_R] = second[0]
        shares_R = None if self._shares_S is None else self._shares_S[rows_R]
        return self._added(x_RD, shares_R, label_R, k)

    def _parts(self, counts_B: torch.Tensor, share: slice) -> Iterator[tuple[int, slice]]:
        """The rows of each branch within a share of all, as slices of `batch_rows` at most."""
        end = 0
        for branch, n_rows in enumerate(counts_B.tolist()):
            start, end = max(end, share.start), end + n_rows
            last = min(end, share.stop)
            for begin in range(start, last, self._batch_rows):
                self._pause()
                yield branch, slice(begin, min(begin + self._batch_rows, last))

    def _added(
        self, x_RD: torch.Tensor, shares_R: torch.Tensor | None, label_R: torch.Tensor, k: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Weighted sums and masses of k clusters over some rows, float64."""
        sums_KD = self._sums_KD.new_zeros((k, x_RD.shape[1]))
        counts_K = self._branch_K.new_zeros(k)
        kernel = self._kernel_for(self._plan.near[-1])
        for start in range(0, len(x_RD), self._batch_rows):
            part = slice(start, start + self._batch_rows)
            kernel.accumulate(
                x_RD[part], label_R[part], sums_KD=sums_KD, counts_K=counts_K,
                shares_B=None if shares_R is None else shares_R[part],
            )  # fmt: skip
        if shares_R is None:
            return sums_KD, counts_K.double()
        mass_K1 = sums_KD.new_zeros((k, 1))
        add_by_label(shares_R[:, None], label_R, counts_K, mass_K1)
        return sums_KD.mul_(self._unit), mass_K1[:, 0] * self._unit

    def _move_(self, k: int) -> None:
        """Put the centroids that have rows on their means."""
        sums_KD, mass_K = self._sums_KD[:k], self._mass_K[:k]
        centres_KD = self._centres(Part(sums_KD, mass_K))
        moved_K = (sums_KD != 0).any(dim=1) if self._spherical else mass_K > 0
        c_KD = self.centroids_KD[:k]
        c_KD.copy_(torch.where(moved_K[:, None], centres_KD, c_KD))

    def _centres(self, part: Part) -> torch.Tensor:
        sums_KD = part.sums_KD
        centres_KD = normalized(sums_KD) if self._spherical else sums_KD / part.mass_K[:, None]
        return centres_KD.to(self.centroids_KD.dtype)

    # ---- to mend ----------------------------------------------------------------

    def _fill_(self, empty_K: torch.Tensor, generator: torch.Generator) -> None:
        """Put empty clusters on rows drawn by squared distance, as far as such rows go."""
        weights_S = self._sample.weighted(self._closest_S)
        places = empty_K.nonzero().squeeze(1)
        places = places[: int((weights_S > 0).sum())]
        if not len(places):
            return
        drawn = draw_distinct(weights_S, len(places), generator)
        self.centroids_KD[places] = self._sample.x_SD[drawn]
        self._sums_KD[places], self._mass_K[places] = 0, 0
        self._branch_K[places] = self._branch_K[self._label_S[drawn]]
        self._label_S[drawn], self._closest_S[drawn] = places, 0

    def _exchange_(
        self, whole: Part, second_S: torch.Tensor, near: Near, generator: torch.Generator
    ) -> None:
        """Halve the clusters where that pays, and move one half of each.

        It replaces a cluster that is missed least, or else joins the nearest other cluster.
        `whole` is of all rows, by their labels.
        """
        label_S, k = self._label_S, len(whole.mass_K)
        every_K = torch.arange(k, device=label_S.device)
        # An empty cluster needs no heir.
        heir_K = torch.where(whole.mass_K > 0, near.heir_K, every_K)
        loss_K = self._losses(whole, second_S, heir_K)
        halves = self._halves(whole, generator)
        gain_K = self._cost_of_joining(halves.one, halves.other)
        pairs = choose_exchanges(gain_K.tolist(), loss_K.tolist(), heir_K.tolist())
        taken = {*chain.from_iterable(pairs), *(int(heir_K[given_up]) for _, given_up in pairs)}
        self._replace_(pairs, heir_K, halves)
        self._hand_over_(taken, whole, gain_K, halves, near)
        self._move_(k)

    def _losses(self, whole: Part, second_S: torch.Tensor, heir_K: torch.Tensor) -> torch.Tensor:
        """Rise of the cost without each cluster; infinite if there is no other.

        Its rows go to their second nearest, or all of them to its heir.
        """
        label_S, k = self._label_S, len(heir_K)
        loss_K1 = whole.sums_KD.new_zeros((k, 1))
        losses_S = self._sample.weighted((second_S - self._closest_S).double())
        add_by_label(losses_S[:, None], label_S, torch.bincount(label_S, minlength=k), loss_K1)
        loss_K = torch.minimum(loss_K1[:, 0], self._cost_of_joining(whole, whole.of(heir_K)))
        is_alone_K = heir_K == torch.arange(k, device=heir_K.device)
        return loss_K.masked_fill_(is_alone_K & (whole.mass_K > 0), torch.inf)

    def _halves(self, whole: Part, generator: torch.Generator) -> Halves:
        """Halve each cluster by a row drawn by squared distance; then by the halves' means."""
        sample = self._sample
        drawn_K = draw_of_each(
            self._label_S, sample.weighted(self._closest_S), len(whole.mass_K), generator
        )
        halves = self._halved(whole, sample.x_SD[drawn_K], self._centres(whole))
        return self._halved(whole, self._centres(halves.one), self._centres(halves.other))

    def _halved(self, whole: Part, one_KD: torch.Tensor, other_KD: torch.Tensor) -> Halves:
        """Rows that are nearer to `one_KD` of their cluster than to `other_KD`, and the others."""
        x_SD, label_S, k = self._sample.x_SD, self._label_S, len(one_KD)
        is_in_S = sq_distances_to(x_SD, label_S, one_KD) < sq_distances_to(x_SD, label_S, other_KD)
        half_S = torch.where(is_in_S, label_S, k)
        sums_KD, mass_K = self._added(x_SD, self._shares_S, half_S, k + 1)
        one = Part(sums_KD[:k], mass_K[:k])
        return Halves(is_in_S, one, Part(whole.sums_KD - one.sums_KD, whole.mass_K - one.mass_K))

    def _replace_(self, pairs: list[tuple[int, int]], heir_K: torch.Tensor, halves: Halves) -> None:
        """Put one half of the first cluster of each pair in place of the second."""
        if not pairs:
            return
        halved, given_up = torch.tensor(pairs, device=heir_K.device).unbind(1)
        partner_K = torch.full_like(heir_K, -1)
        partner_K[halved] = given_up
        now_K = torch.arange(len(heir_K), device=heir_K.device)
        now_K[given_up] = heir_K[given_up]
        goes_S = halves.is_in_one_S & (partner_K[self._label_S] >= 0)
        self._label_S = torch.where(goes_S, partner_K[self._label_S], now_K[self._label_S])
        self._branch_K[given_up] = self._branch_K[halved]
        self._put_(given_up, halves.one.of(halved))
        self._put_(halved, halves.other.of(halved))

    def _hand_over_(
        self, taken: set[int], whole: Part, gain_K: torch.Tensor, halves: Halves, near: Near
    ) -> None:
        """Let halves of clusters that are not `taken` join another cluster, where that pays."""
        sides = ((halves.one, halves.other), (halves.other, halves.one))
        heirs = [self._cheapest_heirs(goes, whole, near) for goes, _ in sides]
        nets = [
            gain_K - self._cost_of_joining(goes, whole.of(heir_K))
            for (goes, _), heir_K in zip(sides, heirs, strict=True)
        ]
        chosen = choose_handovers(
            [net_K.tolist() for net_K in nets], [heir_K.tolist() for heir_K in heirs], taken
        )
        for (goes, stays), heir_K, clusters in zip(sides, heirs, chosen, strict=True):
            halved = torch.tensor(clusters, dtype=torch.int64, device=heir_K.device)
            heir, to_K = heir_K[halved], torch.full_like(heir_K, -1)
            to_K[halved] = heir
            goes_S = (halves.is_in_one_S == (goes is halves.one)) & (to_K[self._label_S] >= 0)
            self._label_S = torch.where(goes_S, to_K[self._label_S], self._label_S)
            joined, left = whole.of(heir), goes.of(halved)
            self._put_(heir, Part(joined.sums_KD + left.sums_KD, joined.mass_K + left.mass_K))
            self._put_(halved, stays.of(halved))

    def _cheapest_heirs(self, half: Part, whole: Part, near: Near) -> torch.Tensor:
        """For a half of each cluster, the other cluster near its branch that it joins cheapest."""
        c_KD, points_KD = self.centroids_KD, self._centres(half)
        heir_K = torch.arange(len(points_KD), device=points_KD.device)
        for own_L, near_N in zip(near.in_branches, near.of_branches, strict=True):
            if not len(own_L):
                continue
            c_ND, mass_N = c_KD[near_N], whole.mass_K[near_N]
            sq_norms_N = c_ND.square().sum(dim=1)
            for own_T in own_L.split(TILE_CLUSTERS):
                costs_TN = sq_distances_between(points_KD[own_T], c_ND, sq_norms_N)
                # Ward's cost over the mass of the half.
                costs_TN *= mass_N / (half.mass_K[own_T, None] + mass_N)
                costs_TN.masked_fill_(own_T[:, None] == near_N, torch.inf)
                heir_K[own_T] = near_N[costs_TN.argmin(dim=1)]
        return heir_K

    def _put_(self, places: torch.Tensor, part: Part) -> None:
        self._sums_KD[places], self._mass_K[places] = part.sums_KD, part.mass_K

    def _cost_of_joining(self, one: Part, other: Part) -> torch.Tensor:
        return cost_of_joining(one, other, spherical=self._spherical)
