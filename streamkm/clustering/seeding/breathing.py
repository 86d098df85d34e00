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
from streamkm.clustering.seeding.sample import Draws, Sample, draw_distinct
from streamkm.clustering.seeding.sample_lloyd import SamplePass
from streamkm.kernels import cheapest_mergers, mean_around, normalized

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamkm.kernels import Kernel

__all__ = ["Breathing"]

#: Kind of these draws; see `Draws`.
_BREATHS = -6
#: Size of a breath, as a share of the one before that was not kept.
SHRUNK = 0.7
#: Costs of mergers are blurred by exponential variables to this power: see `missed_most`.
BLUR = 0.25
#: A breath is kept if it lowers the cost by more than this share, which rounding may do.
LEAST_GAIN = 1e-7
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
        pause: Callable[[], None] = lambda: None,
    ) -> None:
        """`kernel` must take ``K + breath_size(K)`` centroids."""
        self.n_units, self.n_done = n_breaths, 0
        self._sample, self._draws = sample, Draws(seed, _BREATHS, number)
        self._pass = SamplePass(
            sample, kernel=kernel, batch_rows=batch_rows, spherical=spherical, pause=pause
        )
        self._spherical, self.centroids_KD = spherical, centroids_KD
        self._sq_distances_S = torch.empty_like(sample.sq_norms_S)
        self._label_S = torch.empty(len(sample), dtype=torch.int64, device=centroids_KD.device)
        self.cost = torch.full((), torch.inf, dtype=torch.float64, device=centroids_KD.device)
        self._size = torch.tensor(breath_size(len(centroids_KD)))
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

    def restore_(self, tensors: dict[str, torch.Tensor]) -> None:
        """See `Stage`."""
        self.centroids_KD, self.cost = tensors["centroids_KD"], tensors["cost"]
        self._sq_distances_S, self._label_S = tensors["sq_distances_S"], tensors["label_S"]
        self._size, self._n_refused = tensors["size"], tensors["n_refused"]

    def step_(self, index: int) -> bool:
        """Take a breath, and return whether another may follow."""
        generator = self._draws.generator(self.centroids_KD.device, index)
        if index == 0:
            self._keep_if_better_(self.centroids_KD, 1, generator)
        weights_S = self._sample.weighted(self._sq_distances_S)
        size = min(int(self._size), int((weights_S > 0).sum()))
        self.n_done = index + 1
        if size == 0:
            return False
        added = [self._mean_around(row) for row in draw_distinct(weights_S, size, generator)]
        found = self._pass.after_several(
            torch.cat((self.centroids_KD, *added)), PASSES_IN, generator
        )
        is_left_K = missed_most(
            found.centroids_KD, found.mass_K, len(self.centroids_KD),
            blurred_by=generator if int(self._n_refused) else None,
        )  # fmt: skip
        if self._keep_if_better_(found.centroids_KD[is_left_K], PASSES_OUT, generator):
            self._n_refused = torch.zeros_like(self._n_refused)
        else:
            self._n_refused = self._n_refused + 1
            self._size = torch.tensor(max(int(SHRUNK * int(self._size)), 1))
        return self.n_done < self.n_units and int(self._n_refused) < PATIENCE

    def _keep_if_better_(
        self, centroids_KD: torch.Tensor, n_passes: int, generator: torch.Generator
    ) -> bool:
        """Make passes from `centroids_KD` on; keep what they find if it costs less."""
        found = self._pass.after_several(centroids_KD, n_passes, generator, exact=True)
        if not bool(found.cost_after < (1 - LEAST_GAIN) * self.cost):
            return False
        self.centroids_KD, self.cost = found.centroids_KD, found.cost_after
        self._sq_distances_S, self._label_S = found.sq_distances_S, found.label_S
        return True

    def _mean_around(self, row: torch.Tensor) -> torch.Tensor:
        """Mean of a row and its `rows_around` nearest rows of its cluster, (1, D)."""
        sample, k = self._sample, len(self.centroids_KD)
        mean_LD = mean_around(
            sample.x_SD, sample.weights_S, self._label_S, row,
            step=around_step(len(sample), k), most=rows_around(len(sample), k),
        )  # fmt: skip
        return normalized(mean_LD) if self._spherical else mean_LD


def missed_most(
    centroids_KD: torch.Tensor,
    mass_K: torch.Tensor,
    n_left: int,
    *,
    blurred_by: torch.Generator | None = None,
) -> torch.Tensor:
    """Whether each centroid is one of the `n_left` that are missed most.

    A centroid is missed by the rise of the cost if it is merged with its partner, the one with
    which that rise is least. If it is removed, its partner stays. With `blurred_by`, a centroid
    that is missed by a is removed before one missed by b with probability ``b^4 / (a^4 + b^4)``.
    """
    # In a unit, a power of two: products of huge masses would overflow.
    mass_K = mass_K / torch.exp2(torch.frexp(mass_K.max())[1].double())
    costs_K, partner_K = cheapest_mergers(centroids_KD, mass_K)
    if blurred_by is not None:
        # Of a E and b F with exponential E and F, a E is the lesser with probability b / (a + b).
        uniform_K = torch.rand(
            costs_K.shape, dtype=torch.float64, device=mass_K.device, generator=blurred_by
        )
        costs_K = costs_K * (-torch.log1p(-uniform_K)) ** BLUR
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
