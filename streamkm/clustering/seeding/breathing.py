"""Breathing: finds better centroids of a sample by adding a few and removing as many others.

Passes of Lloyd's algorithm never repair two centroids in one cluster and none in another.
Breathing k-means (Fritzke 2020) repairs them. A breath adds a few centroids, makes two passes,
removes as many, and makes two more. Its centroids are kept if they cost less than those before.
So a move is judged by where passes lead from it, not by its cost at once: between centroids
that each stand between two groups, every move raises the cost at first.

For a new centroid a row is drawn by its squared distance to the nearest centroid, as in
k-means++. The centroid begins in the mean of that row and the rows of its cluster around it.
Centroids are removed whose merger with another costs least: the product of their masses over the
sum, times their squared distance (Ward 1963). After a breath that is not kept the next one is
smaller, and its costs of mergers are blurred. Otherwise the same centroids would be removed again.

Rejected: swaps that must lower the cost at once (Lattanzi & Sohler 2019), which leave one seed
in four of a few separated groups 5 to 40 % above the best; the removal of a random centroid instead
of the one missed least (Franti 2018), which takes several times the passes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from streamkm.clustering.seeding.plan import (
    PASSES_IN,
    PASSES_OUT,
    around_step,
    breath_size,
    rows_around,
)
from streamkm.clustering.seeding.sample import Draws, Sample, distinct_by
from streamkm.clustering.seeding.sample_lloyd import SamplePass
from streamkm.clustering.seeding.shares import ALL_HERE
from streamkm.kernels import BreathRules, mass_by_label, normalized, sq_distances_to

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamkm.clustering.seeding.sample_lloyd import Moved
    from streamkm.clustering.seeding.shares import Shares
    from streamkm.kernels import Kernel

__all__ = ["Breathing"]

#: Kind of these draws; see `Draws`.
_BREATHS = -6
#: Products of the masses and distances of pairs of centroids that are held at a time.
TILE_ELEMENTS = 1 << 20
#: Rows are as near as another up to this multiple of its squared distance, which rounding may make.
SLACK = 1 + 1e-9
#: Size of a breath, as a share of the one before that was not kept.
SHRUNK = 0.7
#: Costs of mergers are blurred by exponential variables to this power: see `missed_most`.
BLUR = 0.25
#: A breath is kept if it lowers the cost by more than this share, which rounding may do.
LEAST_GAIN = 1e-7
#: Breaths end after `TRIED` in a row that were not kept if the cheapest merger costs more than this
#: multiple of the costliest cluster. Then those who were added are removed again, since blurring
#: chooses others with probability ``8^-4``. (Of a uniform line, where that is not so, it is 6.)
SETTLED, TRIED = 8.0, 3
#: Breaths end after this number in a row that were not kept.
PATIENCE = 24


class Breathing:
    """Up to `n_breaths` breaths, each of which lowers the cost or leaves the centroids alone."""

    name, unit = "breathing k-means", "breath"

    def __init__(
        self,
        sample: Sample,
        centroids_KD: torch.Tensor,
        n_breaths: int,
        seed: int,
        number: int = 0,
        *,
        kernel: Kernel,
        batch_rows: int,
        spherical: bool = False,
        shares: Shares = ALL_HERE,
        pause: Callable[[], None] = lambda: None,
    ) -> None:
        """`kernel` must take ``K + breath_size(K)`` centroids."""
        self.n_units, self.n_done = n_breaths, 0
        self._sample, self._draws = sample, Draws(seed, _BREATHS, number)
        self._pass = SamplePass(
            sample, kernel=kernel, batch_rows=batch_rows, spherical=spherical, shares=shares,
            pause=pause,
        )  # fmt: skip
        self._spherical, self.centroids_KD = spherical, centroids_KD
        self._sq_distances_S = torch.empty_like(sample.sq_norms_S)
        self._label_S = torch.empty(len(sample), dtype=torch.int64, device=centroids_KD.device)
        self.cost = torch.full((), torch.inf, dtype=torch.float64, device=centroids_KD.device)
        k = len(centroids_KD)
        self._rules = BreathRules(
            PASSES_IN, PASSES_OUT, around_step(len(sample), k), rows_around(len(sample), k),
            SLACK, SETTLED, TRIED, BLUR, LEAST_GAIN, SHRUNK, PATIENCE,
        )  # fmt: skip
        self._size = torch.tensor(breath_size(k))
        self._n_refused = torch.tensor(0)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The centroids and their cost, each row's place among them, and the next breath's size."""
        return {
            "centroids_KD": self.centroids_KD,
            "cost": self.cost,
            "sq_distances_S": self._sq_distances_S,
            "label_S": self._label_S,
            "size": self._size,
            "n_refused": self._n_refused,
        }

    def restore_(self, tensors: dict[str, torch.Tensor], index: int, /) -> None:
        """See `Stage`."""
        self.n_done = index
        self.centroids_KD, self.cost = tensors["centroids_KD"], tensors["cost"]
        self._sq_distances_S, self._label_S = tensors["sq_distances_S"], tensors["label_S"]
        self._size, self._n_refused = tensors["size"], tensors["n_refused"]

    def step_(self, index: int) -> int:
        """Take a breath, or several in one call; return how many if another may follow, else 0."""
        generator = self._draws.generator(self.centroids_KD.device, index)
        if index == 0:
            self._keep_if_better_(self._pass.after(self.centroids_KD, generator, exact=True))
        most = self._pass.most_breaths(self.centroids_KD.shape[0] + int(self._size))
        # A few first: if centroids are settled, these are all.
        n_breaths = min(max(TRIED + 1, 2 * index), self.n_units - index, max(most, 1))
        uniform_MU = self._drawn(index, n_breaths, generator)
        n_taken = self._in_one_call_(uniform_MU) if most else 0
        goes_on = int(self._n_refused) < PATIENCE
        if goes_on and n_taken < n_breaths:
            if n_taken:
                generator = self._draws.generator(generator.device, index + n_taken)
                uniform_MU = self._drawn(index + n_taken, 1, generator)
            goes_on = self._in_steps_(uniform_MU[0], generator)
            n_taken += 1
        self.n_done = index + n_taken
        return n_taken if goes_on and self.n_done < self.n_units else 0

    def _drawn(self, index: int, n_breaths: int, first: torch.Generator) -> torch.Tensor:
        """Numbers from 0 to 1 for breaths from number `index` on, each by its own generator.

        The first breath leaves its generator, `first`, where it is after what it needs: in steps it
        draws more.
        """
        device = self.centroids_KD.device
        n_rows = len(self._sample)
        shape = n_breaths, n_rows + self.centroids_KD.shape[0] + int(self._size)
        uniform_MU = torch.empty(shape, dtype=torch.float64, device=device)
        for place, uniform_U in enumerate(uniform_MU.unbind()):
            if place:
                uniform_U.uniform_(generator=self._draws.generator(device, index + place))
                continue
            uniform_U[:n_rows].uniform_(generator=first)
            if self._n_refused:
                uniform_U[n_rows:].uniform_(generator=first)
        return uniform_MU

    def _in_one_call_(self, uniform_MU: torch.Tensor) -> int:
        """Take breaths in one call, and return how many were taken."""
        found = self._pass.breathe(
            self.centroids_KD, self._label_S, self._sq_distances_S, float(self.cost), uniform_MU,
            self._rules, size=int(self._size), n_refused=int(self._n_refused),
        )  # fmt: skip
        if found.n_taken:
            self._size, self._n_refused = torch.tensor(found.size), torch.tensor(found.n_refused)
        if found.is_kept:
            self.centroids_KD, self._label_S = found.centroids_KD, found.labels_B
            self._sq_distances_S = found.sq_distances_B
            self.cost = self._sample.total(found.sq_distances_B) - found.gains_K.sum()
        return found.n_taken

    def _keep_if_better_(self, found: Moved) -> bool:
        """Keep what passes found if it costs less."""
        if not bool(found.cost_after < (1 - LEAST_GAIN) * self.cost):
            return False
        self.centroids_KD, self.cost = found.centroids_KD, found.cost_after
        self._sq_distances_S, self._label_S = found.sq_distances_S, found.label_S
        return True

    def _in_steps_(self, uniform_U: torch.Tensor, generator: torch.Generator) -> bool:
        """Take a breath step by step, and return whether another may follow."""
        size, n_refused = int(self._size), int(self._n_refused)
        found = self._breath(size, n_refused, uniform_U, generator)
        if found is None:
            return False
        if self._keep_if_better_(found):
            self._n_refused = torch.tensor(0)
            return True
        self._n_refused = torch.tensor(n_refused + 1)
        self._size = torch.tensor(max(int(SHRUNK * size), 1))
        return n_refused + 1 < PATIENCE

    def _breath(
        self, size: int, n_refused: int, uniform_U: torch.Tensor, generator: torch.Generator
    ) -> Moved | None:
        """What the last pass of a breath found; None if no breath can lower the cost."""
        if n_refused == TRIED and self._is_settled(SETTLED):
            return None
        n_rows, weights_S = len(self._sample), self._sample.weighted(self._sq_distances_S)
        size = min(size, int((weights_S > 0).sum()))
        if size == 0:
            return None
        drawn = distinct_by(uniform_U[:n_rows], weights_S, size)
        added = [self._mean_around(row) for row in drawn]
        found = self._pass.after_several(
            torch.cat((self.centroids_KD, *added)), PASSES_IN, generator
        )
        is_left_K = missed_most(
            found.centroids_KD, found.mass_K, self.centroids_KD.shape[0],
            blurred_by=uniform_U[n_rows:] if n_refused else None,
        )  # fmt: skip
        return self._pass.after_several(
            found.centroids_KD[is_left_K], PASSES_OUT, generator, exact=True
        )

    def _is_settled(self, times: float) -> bool:
        """Whether the cheapest merger costs more than some times the costliest cluster."""
        sample, k = self._sample, self.centroids_KD.shape[0]
        if k == 1:
            return False
        within_S = sample.weighted(self._sq_distances_S).double()
        ones_S = torch.ones_like(within_S)
        mass_K = mass_by_label(sample.weighted(ones_S), self._label_S, k)
        within_K = mass_by_label(within_S, self._label_S, k)
        costs_K, _ = cheapest_mergers(self.centroids_KD, mass_K)
        return bool(costs_K.min() > times * within_K.max())

    def _mean_around(self, row: torch.Tensor) -> torch.Tensor:
        """Mean of a row and its `rows_around` nearest rows, (1, D).

        These are of its cluster, half of it at most; rows as near as the last of them count too.
        """
        sample, row = self._sample, row.view(1)
        members = (self._label_S == self._label_S.index_select(0, row)).nonzero().squeeze(1)
        members, own_LD = members[:: self._rules.step], sample.x_SD.index_select(0, row)
        distances_M = sq_distances_to(
            sample.x_SD.index_select(0, members), torch.zeros_like(members), own_LD
        )
        n_near = min(self._rules.most_around, (members.shape[0] + 1) // 2)
        limit = distances_M.topk(n_near, largest=False, sorted=False).values.amax()
        near_N = torch.cat((row, members[distances_M <= limit * SLACK]))
        weights_N1 = torch.ones((len(near_N), 1), dtype=torch.float64, device=row.device)
        if sample.weights_S is not None:
            weights_N1 = sample.weights_S.index_select(0, near_N)[:, None]
        x_ND = sample.x_SD.index_select(0, near_N)
        total_LD = (weights_N1 * x_ND).sum(dim=0, keepdim=True)
        mean_LD: torch.Tensor = (total_LD / weights_N1.sum()).to(x_ND.dtype)
        return normalized(mean_LD) if self._spherical else mean_LD


def missed_most(
    centroids_KD: torch.Tensor,
    mass_K: torch.Tensor,
    n_left: int,
    *,
    blurred_by: torch.Tensor | None = None,
) -> torch.Tensor:
    """Whether each centroid is one of the `n_left` that are missed most.

    A centroid is missed by the rise of the cost if it is merged with its partner, the one with
    which that rise is least. If it is removed, its partner stays. If it is blurred by numbers drawn
    from 0 to 1, float64, at least one for each centroid, a centroid that is missed by a is removed
    before one missed by b with probability ``b^4 / (a^4 + b^4)``.
    """
    # In a unit, a power of two: products of huge masses would overflow.
    mass_K = mass_K / torch.exp2(torch.frexp(mass_K.max())[1].double())
    costs_K, partner_K = cheapest_mergers(centroids_KD, mass_K)
    # In a unit of the largest and rounded to float32: so two centroids that are each other's
    # cheapest cost the same, in whatever order their distance was added up.
    largest = costs_K.max().clamp_min(torch.finfo(costs_K.dtype).tiny)
    costs_K = (costs_K / largest).float().double()
    if blurred_by is not None:
        # Of a E and b F with exponential E and F, a E is the lesser with probability b / (a + b).
        costs_K = costs_K * (-torch.log1p(-blurred_by[: len(costs_K)])) ** BLUR
    partners, n_now = partner_K.tolist(), len(partner_K)
    order = sorted(zip(costs_K.tolist(), mass_K.tolist(), range(n_now), strict=True))
    removed: set[int] = set()
    stays: set[int] = set()
    # Those whose partner is gone, or which are a partner themselves, come last.
    for is_last in (False, True):
        for _, _, place in order:
            if len(removed) == n_now - n_left:
                break
            if is_last or not (place in stays or partners[place] in removed):
                removed.add(place)
                stays.add(partners[place])
    left = [place not in removed for place in range(n_now)]
    return torch.tensor(left, device=centroids_KD.device)


def cheapest_mergers(
    centroids_KD: torch.Tensor, mass_K: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cost of the cheapest merger of each centroid, float64, and with which other one it is."""
    wide_KD, costs, partners = centroids_KD.double(), [], []
    sq_norms_K, tiny = wide_KD.square().sum(dim=1), torch.finfo(mass_K.dtype).tiny
    tile = max(TILE_ELEMENTS // len(wide_KD), 1)
    for start in range(0, len(wide_KD), tile):
        rows = slice(start, start + tile)
        mass_T1 = mass_K[rows, None]
        costs_TK = torch.addmm(sq_norms_K, wide_KD[rows], wide_KD.T, alpha=-2)
        costs_TK += sq_norms_K[rows, None]
        costs_TK *= mass_T1 * mass_K / (mass_T1 + mass_K).clamp_min_(tiny)
        costs_TK.diagonal(start).fill_(torch.inf)
        least_T, partner_T = costs_TK.min(dim=1)
        costs.append(least_T)
        partners.append(partner_T)
    return torch.cat(costs), torch.cat(partners)
