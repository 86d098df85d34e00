"""A tree of clusters on a sample: centroids for many clusters at a few comparisons a row.

k-means++ and Lloyd's algorithm compare each row with every centroid. Here a few clusters are
divided into more, level by level, each into as many as its cost says, and a row is compared with
those near its own cluster alone (cluster closures: Wang et al. 2012, "Fast approximate k-means via
cluster closures"). A pass is so cheap that many are affordable.

The passes are those of mini-batch k-means with a short memory: sums and masses fade, so that a row
counts half after `HALF_LIFE` more rows of its cluster. Such centroids carry some noise, which leads
them out of poor minima; a pass of Lloyd's algorithm then takes it away. Exchanges
(see `exchange`) mend what no pass can: a level above may have given a branch too many clusters.

Rejected: a tree without passes across the borders of its branches, which ends twice as far above
the best; passes of Lloyd's algorithm instead, which stay in the nearest minimum (bench/LOG.md).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import torch

from streamkm.clustering.seeding.exchange import choose_exchanges, cost_of_joining, draw_of_each
from streamkm.clustering.seeding.kmeans_plusplus import GreedyPlusPlus
from streamkm.clustering.seeding.sample import Draws, Sample, draw_distinct
from streamkm.clustering.seeding.tree_plan import HALF_LIFE, POOL, ROWS_PER_CHILD
from streamkm.kernels import add_by_label, normalized, sq_distances_between, sq_distances_to

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streamkm.clustering.seeding.tree_plan import TreePlan
    from streamkm.kernels import Kernel

__all__ = ["Tree", "deal"]

#: Kind of these draws; see `Draws`.
_TREE = -6
#: Clusters of a branch whose distances to others are in memory at once.
TILE_CLUSTERS = 256


class Near(NamedTuple):
    """The clusters near each branch, and the heir of each cluster."""

    of_branches: list[torch.Tensor]
    """Clusters that the rows of a branch are compared with, ascending; none if it has none."""
    heir_K: torch.Tensor
    """The nearest other cluster, which gets the rows of one given up; the cluster itself if it is
    the only one."""


class Half(NamedTuple):
    """One half of every cluster; the other half is the rest."""

    is_in_S: torch.Tensor
    """Whether a row is in this half of its cluster."""
    sums_KD: torch.Tensor
    mass_K: torch.Tensor


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
        pause: Callable[[], None] = lambda: None,
    ) -> None:
        """`make_kernel` makes one for `batch_rows` rows and at most a number of centroids."""
        self._plan, self._steps = plan, plan.steps()
        self.n_units, self.n_done = len(self._steps), 0
        self._sample, self._seed, self._number = sample, seed, number
        self._draws = Draws(seed, _TREE, number)
        # One for each level and its number of near clusters.
        self._kernel_for, self._batch_rows = cache(make_kernel), batch_rows
        self._spherical, self._pause = spherical, pause
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

    def restore_(self, tensors: dict[str, torch.Tensor]) -> None:
        """See `Stage`."""
        self.centroids_KD = tensors["centroids_KD"]
        self._sums_KD, self._mass_K = tensors["sums_KD"], tensors["mass_K"]
        self._branch_K, self._label_S = tensors["branch_K"], tensors["label_S"]
        self._closest_S = tensors["closest_S"]

    def step_(self, index: int) -> bool:
        """Divide the clusters of a level, or make a pass over the rows."""
        level, kind = self._steps[index]
        # The tensors of the step before stay as they are, in case this one is stopped midway.
        self.restore_({name: tensor.clone() for name, tensor in self.tensors().items()})
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
            self._exchange_(all_sums_KD, all_mass_K, second_S, near.heir_K, generator)

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
        return Near(of_branches, heir_K)

    def _assign_(
        self, rows_R: torch.Tensor, near: Near, k: int, second_S: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Label `rows_R` by the nearest of the clusters near theirs; return sums and masses."""
        sample, c_KD = self._sample, self.centroids_KD[:k]
        branch_R = self._branch_K[self._label_S[rows_R]]
        rows_R = rows_R[branch_R.argsort(stable=True)]
        x_RD, sq_norms_R = sample.x_SD.index_select(0, rows_R), sample.sq_norms_S[rows_R]
        label_R, closest_R = torch.empty_like(rows_R), torch.empty_like(sq_norms_R)
        second_R = torch.empty_like(sq_norms_R)
        counts_B = torch.bincount(branch_R, minlength=len(near.of_branches))
        kernel = self._kernel_for(max(map(len, near.of_branches)))
        for branch, part in self._parts(counts_B):
            near_N = near.of_branches[branch]
            rows = (x_RD[part], sq_norms_R[part], c_KD.index_select(0, near_N))
            if second_S is None:
                label_P, closest_R[part] = kernel.assign(*rows)
            else:
                label_P, closest_R[part], second_R[part] = kernel.assign_two(*rows)
            label_R[part] = near_N[label_P]
        self._label_S[rows_R], self._closest_S[rows_R] = label_R, closest_R
        if second_S is not None:
            second_S[rows_R] = second_R
        shares_R = None if self._shares_S is None else self._shares_S[rows_R]
        return self._added(x_RD, shares_R, label_R, k)

    def _parts(self, counts_B: torch.Tensor) -> Iterator[tuple[int, slice]]:
        """The rows of each branch that has any, as slices of `batch_rows` at most."""
        start = 0
        for branch, n_rows in enumerate(counts_B.tolist()):
            for begin in range(start, start + n_rows, self._batch_rows):
                self._pause()
                yield branch, slice(begin, min(begin + self._batch_rows, start + n_rows))
            start += n_rows

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
        centres_KD = self._centres(sums_KD, mass_K)
        moved_K = (sums_KD != 0).any(dim=1) if self._spherical else mass_K > 0
        c_KD = self.centroids_KD[:k]
        c_KD.copy_(torch.where(moved_K[:, None], centres_KD, c_KD))

    def _centres(self, sums_KD: torch.Tensor, mass_K: torch.Tensor) -> torch.Tensor:
        centres_KD = normalized(sums_KD) if self._spherical else sums_KD / mass_K[:, None]
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
        self,
        sums_KD: torch.Tensor,
        mass_K: torch.Tensor,
        second_S: torch.Tensor,
        heir_K: torch.Tensor,
        generator: torch.Generator,
    ) -> None:
        """Halve the clusters that gain most; one half of each replaces one that is missed least.

        `sums_KD` and `mass_K` are those of all rows, by their labels.
        """
        sample, label_S, k = self._sample, self._label_S, len(mass_K)
        every_K = torch.arange(k, device=label_S.device)
        # An empty cluster needs no heir.
        heir_K = torch.where(mass_K > 0, heir_K, every_K)
        # Its rows go to their second nearest, or all of them to the nearest other cluster.
        loss_K1 = sums_KD.new_zeros((k, 1))
        losses_S = sample.weighted((second_S - self._closest_S).double())
        add_by_label(losses_S[:, None], label_S, torch.bincount(label_S, minlength=k), loss_K1)
        heirs = (sums_KD[heir_K], mass_K[heir_K])
        joined_K = cost_of_joining((sums_KD, mass_K), heirs, spherical=self._spherical)
        loss_K = torch.minimum(loss_K1[:, 0], joined_K)
        loss_K.masked_fill_((heir_K == every_K) & (mass_K > 0), torch.inf)

        drawn_K = draw_of_each(label_S, sample.weighted(self._closest_S), k, generator)
        half = self._half(sample.x_SD[drawn_K], self._centres(sums_KD, mass_K))
        rest_KD, rest_K = sums_KD - half.sums_KD, mass_K - half.mass_K
        half = self._half(self._centres(half.sums_KD, half.mass_K), self._centres(rest_KD, rest_K))
        rest_KD, rest_K = sums_KD - half.sums_KD, mass_K - half.mass_K
        gain_K = cost_of_joining(
            (half.sums_KD, half.mass_K), (rest_KD, rest_K), spherical=self._spherical
        )

        pairs = choose_exchanges(gain_K.tolist(), loss_K.tolist(), heir_K.tolist())
        if not pairs:
            return
        halved, given_up = torch.tensor(pairs, device=label_S.device).unbind(1)
        partner_K = torch.full_like(heir_K, -1)
        partner_K[halved] = given_up
        now_K = every_K.clone()
        now_K[given_up] = heir_K[given_up]
        goes_S = half.is_in_S & (partner_K[label_S] >= 0)
        self._label_S = torch.where(goes_S, partner_K[label_S], now_K[label_S])
        self._branch_K[given_up] = self._branch_K[halved]
        self._sums_KD[given_up], self._mass_K[given_up] = half.sums_KD[halved], half.mass_K[halved]
        self._sums_KD[halved], self._mass_K[halved] = rest_KD[halved], rest_K[halved]
        self._move_(k)

    def _half(self, one_KD: torch.Tensor, other_KD: torch.Tensor) -> Half:
        """The rows that are nearer to `one_KD` of their cluster than to `other_KD`."""
        x_SD, label_S, k = self._sample.x_SD, self._label_S, len(one_KD)
        is_in_S = sq_distances_to(x_SD, label_S, one_KD) < sq_distances_to(x_SD, label_S, other_KD)
        half_S = torch.where(is_in_S, label_S, k)
        sums_KD, mass_K = self._added(x_SD, self._shares_S, half_S, k + 1)
        return Half(is_in_S, sums_KD[:k], mass_K[:k])


def deal(costs: list[float], rows: list[int], k: int, n_features: int) -> list[int]:
    """Deal `k` children to clusters by their costs: at least 1 and at most their rows.

    Children are dealt in proportion to ``cost^(D / (D + 2))``, which ends lowest where the density
    within each cluster is even (Zador 1982; Gersho 1979), and rounded by largest remainders. A
    cluster without rows gets none.
    """
    power = n_features / (n_features + 2)
    shares = [cost**power if cost > 0 else 0.0 for cost in costs]
    total = sum(shares) or 1.0
    quotas = [k * share / total for share in shares]
    dealt = [min(max(int(quota), 1), n) for quota, n in zip(quotas, rows, strict=True)]
    while (lacking := k - sum(dealt)) != 0:
        # A round gives or takes one from each, those furthest from their quota first.
        sign = 1 if lacking > 0 else -1
        open_ = [i for i, n in enumerate(dealt) if (n < rows[i] if sign > 0 else n > 1)]
        open_.sort(key=lambda i: (sign * (dealt[i] - quotas[i]), i))
        for i in open_[: abs(lacking)]:
            dealt[i] += sign
    return dealt
