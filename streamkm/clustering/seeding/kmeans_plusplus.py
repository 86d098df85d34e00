"""Stages that choose rows of a sample as centroids: at random or by k-means++."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch

from streamkm.clustering.seeding.plan import MAX_PROPOSED, greedy_trials
from streamkm.clustering.seeding.sample import Draws, Sample, draw_by_weight, draw_distinct
from streamkm.clustering.seeding.shares import ALL_HERE
from streamkm.kernels import KernelRequest, choose_, make_kernel

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamkm.clustering.seeding.shares import Shares
    from streamkm.kernels import Kernel

__all__ = ["BatchedPlusPlus", "GreedyPlusPlus", "RandomRows", "kmeans_plusplus"]

#: Kinds of these draws; see `Draws`.
_RANDOM, _PLUS_PLUS = -1, -2
#: Rows that one step of `BatchedPlusPlus` proposes, as a share of the centroids chosen so far:
#: few enough that most are accepted.
PROPOSED_SHARE = 0.25
#: Rows that `kmeans_plusplus` compares with new centroids at once.
BATCH_ROWS = 16384


class ChosenRows(ABC):
    """A stage whose centroids are rows of the sample."""

    name, unit = "random rows", "centroid"

    def __init__(self, sample: Sample, k: int, draws: Draws) -> None:
        self.n_units, self.n_done = k, 0
        self._sample, self._draws = sample, draws
        self._chosen_K = torch.full((k,), -1, dtype=torch.int64, device=sample.x_SD.device)

    @property
    def centroids_KD(self) -> torch.Tensor:
        """The chosen rows."""
        return self._sample.x_SD.index_select(0, self._chosen_K)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Positions of the chosen rows, -1 for those to come."""
        return {"chosen_K": self._chosen_K}

    def restore_(self, tensors: dict[str, torch.Tensor], _index: int, /) -> None:
        """See `Stage`."""
        self._chosen_K = tensors["chosen_K"]
        self.n_done = int((self._chosen_K >= 0).sum())

    @abstractmethod
    def step_(self, index: int) -> bool:
        """Choose one row or more, and return whether there are more to choose."""


class RandomRows(ChosenRows):
    """Rows drawn without replacement, with probability proportional to weight, in one step."""

    def __init__(self, sample: Sample, k: int, seed: int, number: int = 0) -> None:
        super().__init__(sample, k, Draws(seed, _RANDOM, number))

    def step_(self, index: int) -> bool:
        """Draw all rows."""
        generator = self._draws.generator(self._sample.x_SD.device, index)
        ones_S = torch.ones_like(self._sample.sq_norms_S)
        self._chosen_K = draw_distinct(self._sample.weighted(ones_S), self.n_units, generator)
        self.n_done = self.n_units
        return False


class _PlusPlus(ChosenRows):
    """Base of both ways of k-means++: keeps each row's distance to the nearest chosen row."""

    name = "k-means++"

    def __init__(self, sample: Sample, k: int, seed: int, number: int = 0) -> None:
        super().__init__(sample, k, Draws(seed, _PLUS_PLUS, number))
        self._closest_S = torch.full_like(sample.sq_norms_S, torch.inf)
        self._left_S = self._weights_left()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Positions of the chosen rows, and each row's squared distance to the nearest of them."""
        return {**super().tensors(), "closest_S": self._closest_S}

    def restore_(self, tensors: dict[str, torch.Tensor], index: int, /) -> None:
        """See `Stage`."""
        super().restore_(tensors, index)
        self._closest_S = tensors["closest_S"]
        self._left_S = self._weights_left()

    def _weights_left(self) -> torch.Tensor:
        """Weights of the rows, 0 for chosen rows."""
        left_S = self._sample.weighted(torch.ones_like(self._sample.sq_norms_S)).double()
        return left_S.index_fill(0, self._chosen_K[: self.n_done], 0)

    def _choose_first_(self, generator: torch.Generator) -> None:
        first = draw_by_weight(self._left_S, 1, generator)
        self._chosen_K[:1] = first
        self._closest_S = self._sample.sq_distances_from(first)[0]
        self._left_S.index_fill_(0, first, 0)
        self.n_done = 1


class GreedyPlusPlus(_PlusPlus):
    """Greedy k-means++ (Arthur & Vassilvitskii 2007), one centroid a step.

    A step draws ``2 + log k`` rows with probability proportional to the (weighted)
    squared distance from the centroids so far, and keeps the row that leaves the least
    cost, as in the authors' own implementation and scikit-learn's.
    """

    def __init__(
        self, sample: Sample, k: int, seed: int, number: int = 0, *, trials: int | None = None
    ) -> None:
        """`trials` rows are drawn a step, if it is given."""
        super().__init__(sample, k, seed, number)
        self._trials = trials or greedy_trials(k)

    def step_(self, index: int) -> bool:
        """Choose centroid number `index`, and return whether there is another to choose."""
        sample, device = self._sample, self._sample.x_SD.device
        uniform_L = torch.rand(
            self._trials if index else 1,
            dtype=torch.float64, device=device, generator=self._draws.generator(device, index),
        )  # fmt: skip
        self._chosen_K[index : index + 1] = choose_(
            sample.x_SD, sample.sq_norms_S, sample.weights_S, uniform_L,
            closest_S=self._closest_S, left_S=self._left_S, is_first=index == 0,
        )  # fmt: skip
        self.n_done = index + 1
        return self.n_done < self.n_units


class BatchedPlusPlus(_PlusPlus):
    """k-means++ with one trial for each centroid, many centroids a step.

    A step proposes rows by their squared distance from the centroids before it, and goes
    through them in order. It accepts a row with probability ``now / before``: its squared
    distance from all centroids accepted so far, over that from the centroids before the
    step. By this rejection each accepted row is a draw by the squared distance at its
    turn. So this *is* k-means++, not an approximation, but it compares the sample with
    many new centroids in one matrix product.

    Rejected: k-means|| on the sample, which takes ten times the comparisons.
    """

    def __init__(
        self,
        sample: Sample,
        k: int,
        seed: int,
        number: int = 0,
        *,
        kernel: Kernel,
        batch_rows: int,
        shares: Shares = ALL_HERE,
    ) -> None:
        """`kernel` must take `batch_rows` rows and at least ``min(k, MAX_PROPOSED)`` centroids."""
        super().__init__(sample, k, seed, number)
        self._kernel, self._batch_rows, self._shares = kernel, batch_rows, shares

    def step_(self, index: int) -> bool:
        """Propose rows, accept some, and return whether there are more to choose."""
        sample, found = self._sample, self.n_done
        generator = self._draws.generator(sample.x_SD.device, index)
        if index == 0:
            self._choose_first_(generator)
            return self.n_units > 1
        weights_S = sample.weighted(self._closest_S)
        if not bool(weights_S.max() > 0):
            # If all rows lie on centroids, to rounding, any other rows will do.
            accepted = draw_distinct(self._left_S, self.n_units - found, generator)
        else:
            wanted = min(max(int(found * PROPOSED_SHARE), 1), MAX_PROPOSED)
            proposed = draw_by_weight(weights_S, wanted, generator)
            accepted = self._accept(proposed, generator)[: self.n_units - found]
        self._chosen_K[found : found + len(accepted)] = accepted
        self._left_S.index_fill_(0, accepted, 0)
        self._move_closer_(accepted)
        self.n_done = found + len(accepted)
        return self.n_done < self.n_units

    def _accept(self, proposed_M: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """The accepted rows of those proposed; the first is always accepted."""
        sample = self._sample
        uniform_M = torch.rand(
            len(proposed_M), dtype=torch.float64, device=proposed_M.device, generator=generator
        )
        before_M = self._closest_S.index_select(0, proposed_M)
        proposals = Sample(sample.x_SD.index_select(0, proposed_M))
        every_M = torch.arange(len(proposed_M), device=proposed_M.device)
        distances_MM = proposals.sq_distances_from(every_M)
        # A row may be proposed twice.
        distances_MM.masked_fill_(proposed_M[:, None] == proposed_M, 0)
        # On the host, one after the other: they are few, and each depends on those before it.
        between_MM, limits_M = distances_MM.cpu().numpy(), (uniform_M * before_M).cpu().numpy()
        now_M, accepted = before_M.cpu().numpy().copy(), []
        for i in range(len(now_M)):
            if limits_M[i] < now_M[i]:
                accepted.append(i)
                now_M = now_M.clip(max=between_MM[i])
        return proposed_M[torch.tensor(accepted, dtype=torch.int64, device=proposed_M.device)]

    def _move_closer_(self, chosen_C: torch.Tensor) -> None:
        """Lower each row's squared distance to the nearest chosen row, given new ones."""
        sample = self._sample
        _, nearest_S = self._shares.assign(
            sample, sample.x_SD[chosen_C], kernel=self._kernel, batch_rows=self._batch_rows
        )
        torch.minimum(self._closest_S, nearest_S, out=self._closest_S)
        self._closest_S.index_fill_(0, chosen_C, 0)


def kmeans_plusplus(
    sample_SD: torch.Tensor,
    k: int,
    seed: int,
    *,
    weights_S: torch.Tensor | None = None,
    batched: bool = False,
    on_step: Callable[[int], None] = lambda _: None,
) -> torch.Tensor:
    """Run k-means++ on a sample, from the first step to the last.

    Parameters
    ----------
    sample_SD : Tensor of shape (S, D), S >= k
        Rows in the scaled space, all finite.
    k : int
        Number of centroids.
    seed : int
        Decides the draws.
    weights_S : Tensor of shape (S,), float64, optional
        Weights of the rows; 1 by default.
    batched : bool
        Whether to choose many centroids a step (`BatchedPlusPlus`), or one, the best of
        several rows (`GreedyPlusPlus`).
    on_step : callable
        Called with the number of centroids chosen, before every step but the first;
        may raise to stop.

    Returns
    -------
    Tensor of shape (k, D)
        Rows of the sample, none of them twice. Two are equal, to rounding, only if the
        sample has fewer than k distinct rows.
    """
    sample, index = Sample(sample_SD, weights_S), 0
    stage: BatchedPlusPlus | GreedyPlusPlus = GreedyPlusPlus(sample, k, seed)
    if batched:
        batch_rows = min(len(sample), BATCH_ROWS)
        kernel = make_kernel(
            "auto", KernelRequest(batch_rows, k, sample_SD.dtype, sample_SD.device)
        )
        stage = BatchedPlusPlus(sample, k, seed, kernel=kernel, batch_rows=batch_rows)
    while stage.step_(index):
        index += 1
        on_step(stage.n_done)
    return stage.centroids_KD
