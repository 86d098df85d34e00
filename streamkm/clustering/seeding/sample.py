"""The rows that seeding works on, and the draws and distances that its parts share.

Every part of seeding (k-means++, local search, Lloyd's algorithm on the sample)
is a `Stage`: it is advanced step by step, and its tensors are all that the steps
so far have decided. The draws of a step come from a generator made of (seed,
kind of stage, number of the stage, step), so that a stage that is saved between
two steps goes on from there with the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import torch

from streamkm.clustering.reservoir import step_generator
from streamkm.kernels import MOST_STEPS, WEIGHT_STEPS, sq_distances_between, sq_distances_with

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streamkm.kernels import Kernel

__all__ = ["Draws", "Sample", "Stage", "draw_by_weight", "draw_distinct", "sample_cost"]


@dataclass(frozen=True)
class Draws:
    """Where the draws of one stage come from."""

    seed: int
    kind: int
    """Below 0, which tells them apart from those of training: its second number is an epoch."""
    number: int = 0
    """Tells stages of one kind apart."""

    def generator(self, device: torch.device, step: int) -> torch.Generator:
        """The generator of one step."""
        return step_generator(device, self.seed, self.kind, self.number, step)


@dataclass(frozen=True)
class Sample:
    """S rows in the scaled space, all finite, and how much each of them counts."""

    x_SD: torch.Tensor
    weights_S: torch.Tensor | None = None
    """Float64, at least 0; None where every row counts 1."""
    n_heavy: int = 0
    """Rows at the end that weigh so much that every sample has them."""

    def __len__(self) -> int:
        return len(self.x_SD)

    @cached_property
    def sq_norms_S(self) -> torch.Tensor:
        """Squared lengths of the rows."""
        norms_S: torch.Tensor = torch.linalg.vector_norm(self.x_SD, dim=1)
        return norms_S.square_()

    def part(self, chosen_S: torch.Tensor, share: float) -> Sample:
        """The rows where `chosen_S` is true: `share` of the rows, and all heavy ones."""
        weights_S = None if self.weights_S is None else self.weights_S[chosen_S]
        if weights_S is not None and self.n_heavy:
            weights_S[-self.n_heavy :] *= share
        return Sample(self.x_SD[chosen_S], weights_S, self.n_heavy)

    def weighted(self, values_S: torch.Tensor) -> torch.Tensor:
        """`values_S`, rows last, times the rows' weights."""
        return values_S if self.weights_S is None else values_S * self.weights_S

    def total(self, values_S: torch.Tensor) -> torch.Tensor:
        """Weighted sum of `values_S` over the rows, which are last; float64."""
        return self.weighted(values_S).sum(dim=-1, dtype=torch.float64)

    def batches(self, batch_rows: int) -> Iterator[slice]:
        """The rows in order, `batch_rows` at a time."""
        for start in range(0, len(self), batch_rows):
            yield slice(start, min(start + batch_rows, len(self)))

    def sq_distances_from(self, rows_L: torch.Tensor) -> torch.Tensor:
        """Squared distances of a few rows of the sample to all of them, (L, S)."""
        x_LD = self.x_SD.index_select(0, rows_L)
        distances_LS = sq_distances_between(x_LD, self.x_SD, self.sq_norms_S)
        # Rounding must not leave a chosen row at a distance from itself: it could
        # be drawn again.
        return distances_LS.scatter_(1, rows_L[:, None], 0)

    def sq_distances_with(
        self, rows_L: torch.Tensor, closest_S: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What `closest_S` would be with each of a few rows chosen too, (L, S), and its `total`."""
        return sq_distances_with(rows_L, closest_S, self.x_SD, self.sq_norms_S, self.weights_S)


class Stage(Protocol):
    """A part of seeding, in steps between any two of which it can be saved."""

    name: str
    unit: str
    n_units: int
    """How far there is to go, at most, in `unit`."""

    @property
    def n_done(self) -> int:
        """How many of them are done."""

    @property
    def centroids_KD(self) -> torch.Tensor:
        """The result, once the last step is taken."""

    def step_(self, index: int) -> bool:
        """Take step number `index`; whether there may be another."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that the steps so far have decided."""

    def restore_(self, tensors: dict[str, torch.Tensor]) -> None:
        """Go back to where `tensors` was called."""


def draw_by_weight(
    weights_S: torch.Tensor, n_draws: int, generator: torch.Generator
) -> torch.Tensor:
    """Positions drawn with replacement, with probability proportional to the weights.

    Weights are rounded to integers first: a running sum of floats depends on
    the order in which a GPU adds them up, one of integers does not.
    """
    weights_S = weights_S.double()
    largest = weights_S.max().clamp_min(torch.finfo(torch.float64).tiny)
    steps = min(WEIGHT_STEPS, MOST_STEPS / len(weights_S))
    cumulative_S = (weights_S / largest).mul_(steps).long().cumsum_(dim=0)
    uniform = torch.rand(n_draws, dtype=torch.float64, device=weights_S.device, generator=generator)
    drawn = torch.searchsorted(cumulative_S, (uniform * cumulative_S[-1]).long(), right=True)
    return drawn.clamp_(max=len(weights_S) - 1)


def draw_distinct(
    weights_S: torch.Tensor, n_draws: int, generator: torch.Generator
) -> torch.Tensor:
    """Positions drawn without replacement, with probability proportional to the weights.

    By the exponential keys of Efraimidis and Spirakis (2006). Positions of no
    weight come last, where there are not enough others.
    """
    uniform_S = torch.rand(
        len(weights_S), dtype=torch.float64, device=weights_S.device, generator=generator
    )
    keys_S = -torch.log1p(-uniform_S) / weights_S.double()
    keys_S.nan_to_num_(nan=torch.inf, posinf=torch.inf)
    return torch.topk(keys_S, n_draws, largest=False).indices


def sample_cost(
    sample: Sample,
    centroids_KD: torch.Tensor,
    kernel: Kernel,
    batch_rows: int,
    pause: Callable[[], None] = lambda: None,
) -> torch.Tensor:
    """Weighted sum of the squared distances of the rows to their nearest centroids, float64."""
    total = torch.zeros((), dtype=torch.float64, device=centroids_KD.device)
    for rows in sample.batches(batch_rows):
        sq_norms_B = sample.sq_norms_S[rows]
        _, sq_distances_B = kernel.assign(sample.x_SD[rows], sq_norms_B, centroids_KD)
        if sample.weights_S is not None:
            sq_distances_B = sq_distances_B * sample.weights_S[rows]
        total += sq_distances_B.sum(dtype=torch.float64)
        pause()
    return total
