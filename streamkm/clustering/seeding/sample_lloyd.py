"""Lloyd's algorithm on a sample in memory, with or without weights."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch

from streamkm.clustering.assignment import sums_by_label
from streamkm.clustering.batch import Batch
from streamkm.clustering.seeding.plan import PASSES_IN, PASSES_OUT, SCORE_PRODUCTS
from streamkm.clustering.seeding.sample import Draws, Sample, draw_distinct
from streamkm.clustering.seeding.shares import ALL_HERE
from streamkm.kernels import Rows, mass_by_label, means_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamkm.clustering.seeding.shares import Shares
    from streamkm.kernels import Breathed, BreathRules, Kernel, PassedOver, Passes

__all__ = ["Moved", "SampleLloyd", "SamplePass"]

#: Kind of these draws, which fill empty clusters; see `Draws`.
_PASSES = -4
#: Passes end when one lowers the cost by at most this share of the cost.
LEAST_GAIN = 1e-4
#: Products of two numbers of a pass in one call, at most: in a longer one a signal would wait.
MOST_PRODUCTS = 1 << 30
#: The same of several passes or breaths in one call: some milliseconds. Those that take longer
#: one by one cost Python nothing.
SEVERAL_PRODUCTS = 1 << 26
#: Products of two numbers that the cheapest mergers take, at most, for a breath in one call: it
#: compares centroids one by one, where torch takes a matrix product.
FEW_PRODUCTS = 1 << 20


class Moved(NamedTuple):
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
        self._batch_rows = batch_rows

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
        in_one_call = self._in_one_call(centroids_KD.shape[0])
        while True:
            if in_one_call is None:
                found, n_made = self._one(centroids_KD, exact=exact and n_passes == 1), 1
                is_full = not bool((found.mass_K == 0).any())
            else:
                passed = in_one_call.make(centroids_KD, n_passes, exact=exact)
                found, n_made, is_full = self._moved(passed), passed.n_made, passed.is_full
                self._pause()
            n_passes -= n_made
            if not is_full:
                self._fill_(found, generator)
            if n_passes == 0:
                return found
            centroids_KD = found.centroids_KD

    def while_worth_it(
        self,
        centroids_KD: torch.Tensor,
        cost_before: torch.Tensor,
        n_passes: int,
        generator_of: Callable[[int], torch.Generator],
    ) -> tuple[Moved, int, bool]:
        """Make `n_passes` passes, or fewer: some in one call, or one.

        Returns what the last pass found, their number, and whether it gained enough for another:
        more than `LEAST_GAIN`. `generator_of` is given the number of a pass.
        """
        in_one_call = self._in_one_call(centroids_KD.shape[0])
        if in_one_call is None:
            found = self.after(centroids_KD, generator_of(0))
            return found, 1, bool(cost_before - found.cost > LEAST_GAIN * found.cost)
        passed = in_one_call.make(
            centroids_KD, min(n_passes, self._most_passes(centroids_KD.shape[0])), exact=False,
            cost_before=float(cost_before), least_share=LEAST_GAIN,
        )  # fmt: skip
        self._pause()
        found = self._moved(passed)
        if not passed.is_full:
            self._fill_(found, generator_of(passed.n_made - 1))
        return found, passed.n_made, passed.is_worth_it

    def _most_passes(self, k: int) -> int:
        """Passes with `k` centroids, at most, that are made in one call."""
        n_rows, n_features = self._sample.x_SD.shape
        return max(SEVERAL_PRODUCTS // (n_rows * k * (n_features + SCORE_PRODUCTS)), 1)

    def most_breaths(self, n_now: int) -> int:
        """Breaths, at most, that may be taken in one call; `n_now` are centroids with those added.

        0 if breaths must be taken step by step.
        """
        compared = n_now * n_now * self._sample.x_SD.shape[1]
        if self._spherical or compared > FEW_PRODUCTS or self._in_one_call(n_now) is None:
            return 0
        return max(self._most_passes(n_now) // (PASSES_IN + PASSES_OUT), 1)

    def breathe(
        self, centroids_KD: torch.Tensor, labels_S: torch.Tensor, sq_distances_S: torch.Tensor,
        cost: float, uniform_MU: torch.Tensor, rules: BreathRules, *, size: int, n_refused: int,
    ) -> Breathed:  # fmt: skip
        """Take as many breaths as there are `uniform_MU`, or fewer: see `Passes`.

        No more than `most_breaths`.
        """
        assert self._passes is not None
        found = self._passes.breathe(
            centroids_KD, labels_S, sq_distances_S, cost, uniform_MU, rules,
            size=size, n_refused=n_refused,
        )  # fmt: skip
        self._pause()
        return found

    def _in_one_call(self, k: int) -> Passes | None:
        """What makes passes in one call, where one is short enough to wait for its end."""
        n_rows, n_features = self._sample.x_SD.shape
        is_short = n_rows * k * (n_features + SCORE_PRODUCTS) <= MOST_PRODUCTS
        return self._passes if is_short else None

    @cached_property
    def _passes(self) -> Passes | None:
        if self._kernel.whole_passes is None:
            return None
        batch = self._batch(slice(None))
        shares_B, unit = batch.shares
        rows = Rows(batch.x_BD, batch.sq_norms_B, shares_B)
        return self._kernel.whole_passes.passes_over(
            rows, batch.weights_B, unit, spherical=self._spherical
        )

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

    def _moved(self, found: PassedOver) -> Moved:
        cost = self._sample.total(found.sq_distances_B)
        cost_after = cost - found.gains_K.sum()
        return Moved(
            found.after_KD, found.mass_K, found.labels_B, found.sq_distances_B, cost, cost_after
        )

    def _fill_(self, found: Moved, generator: torch.Generator) -> None:
        """Put empty clusters on rows drawn by squared distance, as far as such rows go."""
        places = (found.mass_K == 0).nonzero().squeeze(1)
        weights_S = self._sample.weighted(found.sq_distances_S)
        n_useful = min(len(places), int((weights_S > 0).sum()))
        if n_useful:
            drawn = draw_distinct(weights_S, n_useful, generator)
            found.centroids_KD[places[:n_useful]] = self._sample.x_SD[drawn]


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

    def restore_(self, tensors: dict[str, torch.Tensor], index: int, /) -> None:
        """See `Stage`."""
        self.n_done = index
        self.centroids_KD, self.cost = tensors["centroids_KD"], tensors["cost"]

    def step_(self, index: int) -> int:
        """Make a pass, or several in one call; return how many if another may follow, else 0."""
        device = self.centroids_KD.device
        found, n_made, is_worth_it = self._pass.while_worth_it(
            self.centroids_KD, self.cost, self.n_units - index,
            lambda place: self._draws.generator(device, index + place),
        )  # fmt: skip
        self.cost, self.centroids_KD = found.cost, found.centroids_KD
        self.n_done = index + n_made
        return n_made if is_worth_it and self.n_done < self.n_units else 0
