"""Lloyd's algorithm on a sample in memory, with or without weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from streamkm.clustering.assignment import nearest_and_sums
from streamkm.clustering.batch import Batch
from streamkm.clustering.seeding.sample import Draws, Sample, draw_distinct
from streamkm.kernels import normalized

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamkm.kernels import Kernel

__all__ = ["SampleLloyd"]

#: Kind of these draws, which fill empty clusters; see `Draws`.
_PASSES = -4
#: Passes end when one lowers the cost by at most this share of the cost.
LEAST_GAIN = 1e-4


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
        pause: Callable[[], None] = lambda: None,
    ) -> None:
        self.n_units, self.n_done = n_passes, 0
        self._sample, self._draws = sample, Draws(seed, _PASSES, number)
        self._kernel, self._batch_rows, self._spherical = kernel, batch_rows, spherical
        self._pause, self.centroids_KD = pause, centroids_KD
        self.cost = torch.full((), torch.inf, dtype=torch.float64, device=centroids_KD.device)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The centroids so far, and the cost of those before the last pass."""
        return {"centroids_KD": self.centroids_KD, "cost": self.cost}

    def restore_(self, tensors: dict[str, torch.Tensor]) -> None:
        """See `Stage`."""
        self.centroids_KD, self.cost = tensors["centroids_KD"], tensors["cost"]

    def step_(self, index: int) -> bool:
        """Make one pass, and return whether another may follow."""
        sample, before_KD = self._sample, self.centroids_KD
        sums_KD = torch.zeros_like(before_KD, dtype=torch.float64)
        mass_K = sums_KD.new_zeros(len(before_KD))
        sq_distances_S = torch.empty_like(sample.sq_norms_S)
        for rows in sample.batches(self._batch_rows):
            weights_B = None if sample.weights_S is None else sample.weights_S[rows]
            batch = Batch(sample.x_SD[rows], sample.sq_norms_S[rows], None, weights_B=weights_B)
            assignment, found = nearest_and_sums(
                self._kernel, batch, before_KD, spherical=False, exact=False
            )
            sq_distances_S[rows] = assignment.sq_distances_B
            sums_KD += found.sums.wide()
            mass_K += found.counts_K if weights_B is None else found.weights_K
            self._pause()
        centres_KD = normalized(sums_KD) if self._spherical else sums_KD / mass_K[:, None]
        moved_K = (sums_KD != 0).any(dim=1) if self._spherical else mass_K > 0
        self.centroids_KD = torch.where(moved_K[:, None], centres_KD.to(before_KD.dtype), before_KD)
        self._fill_(mass_K == 0, sample.weighted(sq_distances_S), index)
        cost_before, self.cost = self.cost, sample.total(sq_distances_S)
        self.n_done = index + 1
        is_worth_it = bool(cost_before - self.cost > LEAST_GAIN * self.cost)
        return is_worth_it and self.n_done < self.n_units

    def _fill_(self, empty_K: torch.Tensor, weights_S: torch.Tensor, index: int) -> None:
        """Put empty clusters on rows drawn by squared distance, as far as such rows go."""
        places = empty_K.nonzero().squeeze(1)
        n_useful = min(len(places), int((weights_S > 0).sum()))
        if n_useful == 0:
            return
        generator = self._draws.generator(empty_K.device, index)
        drawn = draw_distinct(weights_S, n_useful, generator)
        self.centroids_KD[places[:n_useful]] = self._sample.x_SD[drawn]
