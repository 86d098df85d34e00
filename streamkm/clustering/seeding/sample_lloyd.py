"""Lloyd's algorithm on a sample in memory, with or without weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from streamkm.clustering.assignment import sums_by_label
from streamkm.clustering.batch import Batch
from streamkm.clustering.seeding.plan import SCORE_PRODUCTS
from streamkm.clustering.seeding.sample import Draws, Sample, draw_distinct
from streamkm.clustering.seeding.shares import ALL_HERE
from streamkm.kernels import Rows, mass_by_label, means_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamkm.clustering.seeding.shares import Shares
    from streamkm.kernels import Breath, Kernel, PassedOver, PassKernel

__all__ = ["Moved", "SampleLloyd", "SamplePass"]

#: Kind of these draws, which fill empty clusters; see `Draws`.
_PASSES = -4
#: Passes end when one lowers the cost by at most this share of the cost.
LEAST_GAIN = 1e-4
#: Products of two numbers of a pass in one call, at most: in a longer one a signal would wait.
MOST_PRODUCTS = 1 << 30
#: Products of two numbers that the cheapest mergers take, at most, for a breath in one call: it
#: compares centroids one by one, where torch takes a matrix product.
FEW_PRODUCTS = 1 << 20


@dataclass(frozen=True)
class Moved:
    """What one pass over a sample found, and the centroids after it."""

    centroids_KD: torch.Tensor
    """Means of the rows; a cluster without a row is put on a row drawn by its squared distance."""
    mass_K: torch.Tensor
    """Weights of the rows of each cluster, float64."""
    label_S: torch.Tensor
    """Nearest centroid of each row before the pass."""
    sq_distances_S: torch.Tensor
    """Squared distances to these."""
    cost: torch.Tensor
    """Their weighted sum, float64."""
    cost_after: torch.Tensor
    """The cost with the same rows in each cluster and the centroids after the pass, float64."""


class SamplePass:
    """Passes of Lloyd's algorithm over a sample, one at a time."""

    def __init__(
        self,
        sample: Sample,
        *,
        kernel: Kernel,
        batch_rows: int,
        spherical: bool = False,
        shares: Shares = ALL_HERE,
        pause: Callable[[], None] = lambda: None,
    ) -> None:
        self._shares = shares
        self._sample, self._kernel, self._spherical, self._pause = sample, kernel, spherical, pause
        self._all, self._batch_rows = self._batch(slice(None)), batch_rows

    @cached_property
    def _batches(self) -> list[Batch]:
        return [self._batch(rows) for rows in self._sample.batches(self._batch_rows)]

    def _batch(self, rows: slice) -> Batch:
        sample = self._sample
        weights_B = None if sample.weights_S is None else sample.weights_S[rows]
        return Batch(sample.x_SD[rows], sample.sq_norms_S[rows], None, weights_B=weights_B)

    def after(
        self, centroids_KD: torch.Tensor, generator: torch.Generator, *, exact: bool = False
    ) -> Moved:
        """Make one pass; `generator` decides what fills empty clusters.

        Without `exact`, distances are good enough to choose a centroid by, not to compare costs of
        rows that lie far from the origin.
        """
        return self.after_several(centroids_KD, 1, generator, exact=exact)

    def after_several(
        self,
        centroids_KD: torch.Tensor,
        n_passes: int,
        generator: torch.Generator,
        *,
        exact: bool = False,
    ) -> Moved:
        """Make `n_passes` passes, and return what the last one found; see `after`."""
        kernel = self._kernel_for(centroids_KD.shape[0])
        while True:
            if kernel is None:
                found, n_made = self._one(centroids_KD, exact=exact and n_passes == 1), 1
                is_full = not bool((found.mass_K == 0).any())
            else:
                passed = self._at_once(kernel, centroids_KD, n_passes, exact=exact)
                found, n_made, is_full = self._moved(passed), passed.n_made, passed.is_full
            n_passes -= n_made
            if not is_full:
                weights_S = self._sample.weighted(found.sq_distances_S)
                self._fill_(found.centroids_KD, found.mass_K == 0, weights_S, generator)
            if n_passes == 0:
                return found
            centroids_KD = found.centroids_KD

    def after_breath(
        self, centroids_KD: torch.Tensor, breath: Breath, n_passes: int
    ) -> Moved | None:
        """What the last of `n_passes` after a breath found, with exact distances.

        None if the breath must be taken step by step: the kernel knows none, it would not gain, or
        a cluster was left without a row.
        """
        n_now, n_features = centroids_KD.shape[0] + breath.size, centroids_KD.shape[1]
        kernel = self._kernel_for(n_now)
        if kernel is None or self._spherical or n_now * n_now * n_features > FEW_PRODUCTS:
            return None
        found = self._at_once(kernel, centroids_KD, n_passes, exact=True, breath=breath)
        return self._moved(found) if found.n_made == n_passes and found.is_full else None

    def _kernel_for(self, k: int) -> PassKernel | None:
        """The kernel for passes in one call, where one is short enough to wait for its end."""
        n_rows, n_features = self._sample.x_SD.shape
        is_short = n_rows * k * (n_features + SCORE_PRODUCTS) <= MOST_PRODUCTS
        return self._kernel.whole_passes if is_short else None

    def _one(self, centroids_KD: torch.Tensor, *, exact: bool) -> Moved:
        """One pass, batch by batch; clusters without a row stay."""
        sample, kernel, sums, masses = self._sample, self._kernel, [], []
        label_S, sq_distances_S = self._shares.assign(
            sample, centroids_KD, kernel=kernel, batch_rows=self._batch_rows, exact=exact,
            pause=self._pause,
        )  # fmt: skip
        for batch, label_B in zip(self._batches, label_S.split(self._batch_rows), strict=True):
            sums.append(sums_by_label(kernel, batch, label_B, centroids_KD))
            weights_B = batch.weights_B
            ones_B = label_B.new_ones(len(label_B), dtype=torch.float64)
            weights_B = ones_B if weights_B is None else weights_B
            masses.append(mass_by_label(weights_B, label_B, len(centroids_KD)))
            self._pause()
        sums_KD, mass_K = _added(sums), _added(masses)
        after_KD, gain = means_of(sums_KD, mass_K, centroids_KD, spherical=self._spherical)
        cost = sample.total(sq_distances_S)
        return Moved(after_KD, mass_K, label_S, sq_distances_S, cost, cost - gain)

    def _at_once(
        self,
        kernel: PassKernel,
        centroids_KD: torch.Tensor,
        n_passes: int,
        *,
        exact: bool,
        breath: Breath | None = None,
    ) -> PassedOver:
        """Passes in one call, up to the first that finds an empty cluster."""
        batch, (shares_B, unit) = self._all, self._all.shares
        found = kernel.passes(
            Rows(batch.x_BD, batch.sq_norms_B, shares_B), batch.weights_B, unit,
            centroids_KD, n_passes, spherical=self._spherical, exact=exact, breath=breath,
        )  # fmt: skip
        self._pause()
        return found

    def _moved(self, found: PassedOver) -> Moved:
        cost = self._sample.total(found.sq_distances_B)
        cost_after = cost - found.gains_K.sum()
        return Moved(
            found.after_KD, found.mass_K, found.labels_B, found.sq_distances_B, cost, cost_after
        )

    def _fill_(
        self,
        centroids_KD: torch.Tensor,
        empty_K: torch.Tensor,
        weights_S: torch.Tensor,
        generator: torch.Generator,
    ) -> None:
        """Put empty clusters on rows drawn by squared distance, as far as such rows go."""
        places = empty_K.nonzero().squeeze(1)
        n_useful = min(len(places), int((weights_S > 0).sum()))
        if n_useful:
            drawn = draw_distinct(weights_S, n_useful, generator)
            centroids_KD[places[:n_useful]] = self._sample.x_SD[drawn]


def _added(parts: list[torch.Tensor]) -> torch.Tensor:
    """The sum of the `parts` in order; the only one itself."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


class SampleLloyd:
    """Up to `n_passes` passes, each of which moves every centroid to the mean of its rows.

    A cluster without a row is put on a row drawn by its squared distance.
    """

    name, unit = "Lloyd on the sample", "pass"

    def __init__(
        self,
        sample: Sample,
        centroids_KD: torch.Tensor,
        n_passes: int,
        seed: int,
        number: int = 0,
        *,
        kernel: Kernel,
        batch_rows: int,
        spherical: bool = False,
        shares: Shares = ALL_HERE,
        pause: Callable[[], None] = lambda: None,
    ) -> None:
        self.n_units, self.n_done = n_passes, 0
        self._draws, self.centroids_KD = Draws(seed, _PASSES, number), centroids_KD
        self._pass = SamplePass(
            sample, kernel=kernel, batch_rows=batch_rows, spherical=spherical, shares=shares,
            pause=pause,
        )  # fmt: skip
        self.cost = torch.full((), torch.inf, dtype=torch.float64, device=centroids_KD.device)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The centroids so far, and the cost of those before the last pass."""
        return {"centroids_KD": self.centroids_KD, "cost": self.cost}

    def restore_(self, tensors: dict[str, torch.Tensor]) -> None:
        """See `Stage`."""
        self.centroids_KD, self.cost = tensors["centroids_KD"], tensors["cost"]

    def step_(self, index: int) -> bool:
        """Make one pass, and return whether another may follow."""
        generator = self._draws.generator(self.centroids_KD.device, index)
        found = self._pass.after(self.centroids_KD, generator)
        cost_before, self.cost, self.centroids_KD = self.cost, found.cost, found.centroids_KD
        self.n_done = index + 1
        is_worth_it = bool(cost_before - self.cost > LEAST_GAIN * self.cost)
        return is_worth_it and self.n_done < self.n_units
